package attacks

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch"
)

const (
	// envInside says that the process is in the namespaces that play the host.
	envInside = "NARU_ATTACKS_INSIDE"
	// worked is the exit code of an attack that succeeded as far as it can tell.
	worked = 42
	// hostGroup is a group of the tests, as an agent started by a login has some.
	hostGroup = 4242
)

func TestMain(m *testing.M) {
	launch.Main()
	if len(os.Args) > 2 && os.Args[1] == "attack" {
		os.Exit(attackInside(os.Args[2], os.Args[3:]))
	}
	if os.Geteuid() != 0 || os.Getenv(envInside) != "" {
		if os.Geteuid() == 0 {
			if err := furnish(); err != nil {
				fmt.Fprintln(os.Stderr, "attacks: make the namespaces of the tests:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	os.Exit(moveAside())
}

// moveAside runs the tests in namespaces of their own and returns their exit code.
func moveAside() int {
	exe, done, err := staticSelf()
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks: build a static test binary:", err)
		return 1
	}
	defer done()
	dir, err := os.MkdirTemp("", "attacks") // nothing is mounted there once the namespaces are gone
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // see newBox
		fmt.Fprintln(os.Stderr, "attacks:", err)
		return 1
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envInside+"=1", "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Groups: []uint32{hostGroup}},
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // prctl(2): the signal comes when the parent's thread ends
	if err := newSession(); err != nil {
		fmt.Fprintln(os.Stderr, "attacks: session keyring:", err)
		return 1
	}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "attacks:", err)
		return 1
	}
	return 0
}

// newSession gives the thread a session keyring as pam_keyinit(8) gives it to who logs
// in: with the user's keyring in it.
func newSession() error {
	if _, err := unix.KeyctlJoinSessionKeyring("naru-attacks"); err != nil {
		return err
	}
	_, err := unix.KeyctlInt(unix.KEYCTL_LINK, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, 0, 0)
	return err
}

// furnish gives the fresh namespaces a procfs, an empty /run, a loopback and nothing else.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil { // locks and sockets of others
		return fmt.Errorf("mount /run: %w", err)
	}
	return setLoopback(true)
}

// staticSelf is this binary, or where cgo made it dynamic, one like it that runs
// in an empty root.
func staticSelf() (path string, done func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	f, err := elf.Open(self)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) == 0 {
		return self, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "attacks")
	if err != nil {
		return "", nil, err
	}
	exe := filepath.Join(dir, "attacks.test")
	build := exec.Command("go", "test", "-c", "-o", exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("%w: %s", err, out)
	}
	return exe, func() { os.RemoveAll(dir) }, nil
}

// attackInside is what runs in the container: 42 if the attack worked.
func attackInside(name string, args []string) int {
	attack, ok := inside()[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "no attack", name)
		return 2
	}
	if err := attack(args); err != nil {
		fmt.Fprintln(os.Stderr, strings.TrimSpace(err.Error()))
		return 1
	}
	return worked
}
