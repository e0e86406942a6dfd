// Command naru-init is the tiny program that naru embeds: the monitor of a
// container and the helper of exec. It does nothing when it is started by hand.
package main

import "naru/sandbox/runtime/launch"

func main() { launch.Main() }
