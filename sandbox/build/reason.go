package build

// StepExit is how a step ended.
type StepExit struct {
	Code   int    // 128 + the signal's number if one ended it
	Reason Reason // "" for a command that exited with 0
	Detail string // the reason in words: "killed: out of memory (limit 512 MiB)"
}

// Reason is what ended a step.
type Reason string

// The reasons, from the command's own doing to the limits of a build.
const (
	ReasonExit   Reason = "exit"      // it exited with a code above 0
	ReasonSignal Reason = "signal"    // a signal ended it, which nobody of ours sent
	ReasonMemory Reason = "memory"    // the kernel killed it, as it was out of memory
	ReasonPids   Reason = "processes" // it could make no more processes, and failed
	ReasonDisk   Reason = "disk"      // it wrote more than the build may, or than there is room for
	ReasonInodes Reason = "inodes"    // it made more files than the build may
	ReasonTime   Reason = "time"      // it took longer than a step or a build may
)
