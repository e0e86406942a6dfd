package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const qemu = "qemu-system-x86_64"

// machine is one run of qemu.
type machine struct {
	kernel, initramfs, disk string
	console                 string // what the kernel writes goes to this file
}

// bootLimit is the time until the guest must have said its first word.
const bootLimit = 3 * time.Minute

// run boots the machine, hands each line of the guest to read, and waits for
// the end. The process dies with ctx.
func (m machine) run(ctx context.Context, read func(line string)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var complaints strings.Builder
	cmd := exec.CommandContext(ctx, qemu, m.args()...)
	cmd.Stderr = &complaints
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	boot := time.AfterFunc(bootLimit, func() { cancel(fmt.Errorf("the guest said nothing for %s", bootLimit)) })
	done := false
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		boot.Stop()
		line = strings.TrimRight(line, "\r\n")
		if line == "@test-vm done" {
			done = true
		}
		if err == nil {
			read(line)
			continue
		}
		if err != io.EOF {
			cancel(err)
		}
		break
	}
	err = cmd.Wait()
	if done && err == nil {
		return nil
	}
	if err == nil {
		err = errors.New("it went off before its last word")
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("the machine ended early: %w\n%sthe end of its console:\n%s", err, complaints.String(), m.tail())
}

func (m machine) args() []string {
	// A panic reboots (panic=-1), and a reboot is the end (-no-reboot).
	const kernelArgs = "console=ttyS0 panic=-1 oops=panic quiet loglevel=4 mitigations=off nokaslr cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1"
	return []string{
		"-accel", accelerator(), "-cpu", "max", "-smp", "2", "-m", "2G",
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
		"-serial", "file:" + m.console, "-serial", "stdio",
		"-drive", "file=" + m.disk + ",if=virtio,format=raw,cache=unsafe",
		"-kernel", m.kernel, "-initrd", m.initramfs, "-append", kernelArgs,
	}
}

// accelerator is KVM where it works. A virtual machine may have the device
// without the processor's help, and then nothing boots.
func accelerator() string {
	const software = "tcg,thread=multi"
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return software
	}
	_ = device.Close()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return software
	}
	for line := range strings.Lines(string(info)) {
		key, flags, _ := strings.Cut(line, ":")
		if words := strings.Fields(flags); strings.TrimSpace(key) == "flags" && (slices.Contains(words, "vmx") || slices.Contains(words, "svm")) {
			return "kvm"
		}
	}
	return software
}

// tail is the end of the kernel's console.
func (m machine) tail() string {
	text, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-60):], "\n\t")
}
