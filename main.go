// Naru turns a push, a schedule or a manual call into a new version of an app
// on one's own Linux server. See the README.
package main

import (
	"os"

	"naru/cli"
	"naru/sandbox/runtime/launch"
)

func main() {
	// A binary that was built without the embedded init starts containers by a
	// sealed copy of itself; such a copy never gets past this line.
	launch.Main()
	os.Exit(cli.Main(cli.Arguments(os.Args)))
}
