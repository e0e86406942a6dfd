// Command test-vm runs the sandbox's tests on another kernel: Debian's cloud
// kernel, with pure cgroup v2, in qemu.
//
//	kernel    a package of Debian, unpacked into a cache, never installed
//	tests     go test -c of every package
//	disk      ext4: the tests, this machine's tools that they call, the modules
//	initramfs busybox and the modules that lead to the disk
//	qemu      boots them without any network; the tests' output comes out of a serial port
//	report    one line for each package, why tests were skipped, what failed
//
// It uses KVM where that works, and software emulation else. It ends with 1
// unless the guest said that it is done and every package passed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	smoke    bool
	kernel   string
	modules  string
	run      string
	packages string
	limit    time.Duration
	keep     bool
}

func main() {
	var o options
	flag.BoolVar(&o.smoke, "smoke", false, "only a selection that shows that containers work at all")
	flag.StringVar(&o.kernel, "kernel", "", "boot this `vmlinuz` instead of Debian's")
	flag.StringVar(&o.modules, "modules", "", "the kernel's lib/modules/VERSION `folder`; without it -kernel must have all built in")
	flag.StringVar(&o.run, "run", "", "only tests that match this `regexp`")
	flag.StringVar(&o.packages, "packages", "./sandbox/... ./docs", "the `packages`, as the go command understands them")
	flag.DurationVar(&o.limit, "limit", 45*time.Minute, "kill the machine after this time")
	flag.BoolVar(&o.keep, "keep", false, "keep the disk and the console, and print where")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "test-vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if err := check(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "naru-test-vm-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("test-vm: everything is in", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	k, err := findKernel(ctx, o.kernel, o.modules)
	if err != nil {
		return err
	}
	began := time.Now()
	tests, err := compile(ctx, o, filepath.Join(dir, "tests"))
	if err != nil {
		return err
	}
	m := machine{kernel: k.image, initramfs: filepath.Join(dir, "initramfs"), disk: filepath.Join(dir, "disk"), console: filepath.Join(dir, "console")}
	if err := writeInitramfs(ctx, m.initramfs, k); err != nil {
		return err
	}
	absent, err := writeDisk(ctx, m.disk, guest{tree: filepath.Join(dir, "tree"), kernel: k, tests: tests})
	if err != nil {
		return err
	}
	if len(absent) > 0 {
		fmt.Println("test-vm: this machine, and so the guest, has no", strings.Join(absent, ", "))
	}
	fmt.Printf("test-vm: %d packages, made in %.0f s, go to %s\n", len(tests), time.Since(began).Seconds(), k.name)
	r := newReport(os.Stdout, tests)
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("the machine was killed after %s", o.limit))
	defer cancel()
	return errors.Join(m.run(ctx, r.read), r.finish())
}

// check says what is missing before anything is built.
func check() error {
	if runtime.GOARCH != "amd64" {
		return errors.New("this knows how to boot amd64 only, not " + runtime.GOARCH)
	}
	for program, from := range map[string]string{
		qemu: "qemu-system-x86", "mke2fs": "e2fsprogs", "depmod": "kmod", "ldd": "libc-bin", busybox: "busybox-static",
	} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w (Debian package %s)", err, from)
		}
	}
	return nil
}

// output runs a command and returns what it printed, with its complaints in the error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var complaints strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, complaints.String())
	}
	return string(out), nil
}
