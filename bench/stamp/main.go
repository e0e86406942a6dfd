// Command stamp prints the time of CLOCK_MONOTONIC in nanoseconds: started
// inside a container, it says when the first instruction of a program ran.
package main

import (
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

func main() {
	var t syscall.Timespec
	const monotonic = 1
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&t)), 0)
	os.Stdout.WriteString(strconv.FormatInt(t.Nano(), 10) + "\n")
}
