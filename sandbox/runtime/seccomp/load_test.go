package seccomp

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// load puts a program on the calling thread.
func load(prog []byte, flags uint) error {
	fprog := struct {
		count  uint16
		filter uintptr
	}{uint16(len(prog) / 8), uintptr(unsafe.Pointer(&prog[0]))}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if e != 0 {
		return e
	}
	return nil
}

// chain compares a number with every call of the default policy, one after the other.
func chain() []byte {
	c := &assembler{}
	c.load(offArch)
	c.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, family(runtime.GOARCH)[0].audit)
	c.ret(unix.SECCOMP_RET_KILL_PROCESS)
	c.load(offNumber)
	for _, name := range allowedNames() {
		if n, ok := family(runtime.GOARCH)[0].number(name); ok {
			c.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, n)
			c.ret(unix.SECCOMP_RET_ALLOW)
		}
	}
	c.ret(unix.SECCOMP_RET_ALLOW) // or the benchmark's thread could not go on
	return encode(c.code)
}

// The kernel takes the programs, with every flag, and does what they say.
func TestKernelObeys(t *testing.T) {
	errno := uint(77)
	p := Default(nil)
	p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"mincore"}, Action: specs.ActErrno, ErrnoRet: &errno,
		Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpGreaterEqual, Value: 1 << 33}, {Index: 1, Op: specs.OpNotEqual, Value: 5}}})
	p.Syscalls[0].Names = append([]string(nil), p.Syscalls[0].Names...)
	for i, n := range p.Syscalls[0].Names {
		if n == "mincore" {
			p.Syscalls[0].Names[i] = "read"
		}
	}
	f, err := Build(p)
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error)
	go func() {
		runtime.LockOSThread()
		results <- errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), load(f.Program, f.Flags))
		call := func(n uintptr, args ...uintptr) error {
			var a [3]uintptr
			copy(a[:], args)
			_, _, e := unix.RawSyscall(n, a[0], a[1], a[2])
			return e
		}
		results <- call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
		results <- call(unix.SYS_CLONE3, 0, 0)
		results <- call(470)
		results <- call(100000)
		results <- call(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
		results <- call(unix.SYS_IOCTL, 0, unix.TIOCSTI|1<<32, 0)
		results <- call(unix.SYS_MINCORE, 1<<33, 4)
		results <- call(unix.SYS_MINCORE, 1<<33, 5)
		results <- call(unix.SYS_GETPPID)
	}()
	if err := <-results; err != nil {
		t.Fatal(err)
	}
	for i, want := range []syscall.Errno{unix.EPERM, unix.ENOSYS, unix.ENOSYS, unix.ENOSYS, unix.EPERM, unix.EPERM, 77, unix.EPERM, 0} {
		if got := <-results; got != error(want) {
			t.Errorf("call %d: %v, want %v", i, got, want)
		}
	}
}

// The table has what the kernel had when x/sys was made: an update of that module
// which brings new calls fails here.
func TestTableIsCurrent(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Skip("needs the go tool and the module's source:", err)
	}
	for column, name := range map[int]string{0: "amd64", 1: "386", 3: "arm64", 4: "arm"} {
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "unix", "zsysnum_linux_"+name+".go"))
		if err != nil {
			t.Skip("no source of x/sys:", err)
		}
		all := regexp.MustCompile(`(?m)^\s*SYS_(\w+)\s*=\s*(\d+)`).FindAllStringSubmatch(string(b), -1)
		if len(all) < 300 {
			t.Fatalf("%s: only %d calls found", name, len(all))
		}
		for _, m := range all {
			call := strings.ToLower(m[1])
			if call == "arch_specific_syscall" || call == "syscall_mask" {
				continue // not calls
			}
			want, _ := strconv.Atoi(m[2])
			if got, ok := (arch{column: column}).number(call); !ok || int(got) != want {
				t.Errorf("%s: %s is %d, want %d", name, call, got, want)
			}
		}
	}
}
