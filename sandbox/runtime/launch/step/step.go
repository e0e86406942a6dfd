// Package step is the language of a container start: a list of system calls as
// data. The agent writes the list (it knows paths, policies and kernel lore),
// the tiny program compiles it before it forks and the forked child runs it:
// no allocation, no scheduler, no library between two calls. The same list names
// the step that failed, is what tests cut at any index, and can be printed.
//
// One program's life: Encode in the agent, a memfd, which the tiny program maps,
// Compile (every argument becomes a machine word, those that are pointers point
// into the mapping), clone, Run in the child.
//
// The package imports syscall alone: it is linked into a program that must
// start in less than a millisecond.
package step

// Kind says what an argument is.
type Kind uint8

// The kinds of arguments.
const (
	Int     Kind = iota // the value itself
	Reg                 // the content of register Val
	Bytes               // the address of a copy of Data
	Strings             // the address of a NULL-terminated array of Strings (argv, envp)
	Filter              // the address of a sock_fprog for the instructions in Data, seccomp(2)
	Scratch             // an address in ScratchSize bytes that all steps share, Val bytes from their start
)

// ScratchSize is the size in bytes of the area that Scratch points to: what
// getcwd(2) may need.
const ScratchSize = 4096

// Registers 0 to FirstFD-1 are set by the program that forks; the descriptors
// that came with the program follow, then come free ones.
const (
	RegStatus    = iota // reports go here; close-on-exec
	RegGate             // one byte is read from it for each permission to go on
	RegGateWrite        // the other end, which the child must close
	FirstFD      = 8
	NumRegs      = 512 // registers in all
)

// Fail is not a system call: it fails with the errno that a Sticky step left.
const Fail = ^uint32(0)

// Supervise is not a system call either: the process stays what it is, the init
// of a container (docker run --init), for the child whose pid is the first
// argument. It reaps, passes signals on, and exits as that child does.
const Supervise = ^uint32(1)

// Again is not a system call: the program goes on at the step that Skip counts from the
// first one, with the registers as they are.
const Again = ^uint32(2)

// Arg is one argument of a system call.
type Arg struct {
	Kind    Kind
	Val     uint64
	Data    []byte
	Strings []string
}

// Jump skips steps: On is a result, or a negated errno that is then no failure.
type Jump struct {
	On   int32
	Skip uint16
}

// Check is a bit set of further conditions for success.
type Check uint8

// The checks.
const (
	NonEmpty Check = 1 << iota // the result must not be 0 (end of file: whoever held the gate is gone): EPIPE
	Absolute                   // Scratch must begin with "/", see getcwd(2) on "(unreachable)", CVE-2024-21626: ENOENT
	Sticky                     // the errno of a taken Jump is kept for Fail; EACCES wins
)

// Step is one system call.
type Step struct {
	Name  string
	NR    uint32
	Args  []Arg
	Out   int16 // register for the result, -1 for none
	Skip  uint16
	Jumps []Jump
	Check Check
}

// Program is a list of steps in the order in which they run.
type Program []Step

// I is an integer argument.
func I[T ~int | ~uint | ~uint32 | ~uint64 | ~int64](v T) Arg { return Arg{Val: uint64(v)} }

// R is the content of a register.
func R(reg int16) Arg { return Arg{Kind: Reg, Val: uint64(reg)} }

// S is a pointer to a C string.
func S(s string) Arg { return Arg{Kind: Bytes, Data: append([]byte(s), 0)} }

// B is a pointer to a copy of b.
func B(b []byte) Arg { return Arg{Kind: Bytes, Data: b} }

// V is a pointer to an array of C strings.
func V(s []string) Arg { return Arg{Kind: Strings, Strings: s} }

// Call is a step without result; an errno is a failure.
func Call(name string, nr uint32, args ...Arg) Step {
	return Step{Name: name, NR: nr, Args: args, Out: -1}
}

// Into stores the result in a register.
func (s Step) Into(reg int16) Step { s.Out = reg; return s }

// On skips the next n steps when the call returns result (≥ 0) or fails with
// -result.
func (s Step) On(result int, n int) Step {
	s.Jumps = append(s.Jumps[:len(s.Jumps):len(s.Jumps)], Jump{On: int32(result), Skip: uint16(n)})
	return s
}

// Then skips the next n steps on success.
func (s Step) Then(n int) Step { s.Skip = uint16(n); return s }

// Must adds conditions.
func (s Step) Must(c Check) Step { s.Check |= c; return s }
