package oci_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"naru/sandbox/oci"
	"naru/sandbox/runtime"
)

// TestSessionKeyring lists the keyrings that a container can see, and one more process
// of it, with the caller's session keyring and without.
func TestSessionKeyring(t *testing.T) {
	for _, keep := range []bool{false, true} {
		b := newBed(t, sh("cat /proc/keys; sleep 60"))
		b.config.Linux.MaskedPaths = nil
		b.write()
		done := make(chan error, 1)
		go func() {
			goruntime.LockOSThread() // and no unlocking: the thread ends with its session
			ring, err := unix.KeyctlJoinSessionKeyring("of-the-caller")
			if err == nil {
				const possessor = 0x3f000000 // nobody sees it but who has it
				err = unix.KeyctlSetperm(ring, possessor)
			}
			done <- errors.Join(err, b.Create(t.Context(), oci.CreateOptions{ID: "c", Bundle: b.bundle, KeepKeyring: keep, IO: oci.IO{Stdout: b.out, Stderr: b.out}}))
		}()
		b.must(<-done)
		var record struct{ Init runtime.Solo }
		data, err := os.ReadFile(filepath.Join(b.Root, "c", "state.json"))
		b.must(err)
		b.must(json.Unmarshal(data, &record))
		own := record.Init.Keyring
		b.must(b.Start(t.Context(), "c"))
		b.eventually("the list is written", func() bool { return strings.Contains(b.output(), "keyring") })
		if list := b.output(); strings.Contains(list, "of-the-caller") != keep || (own == "") != keep || own != "" && strings.Count(list, own) != 1 {
			t.Errorf("with the caller's kept: %t, the container with %q sees:\n%s", keep, own, list)
		}
		if keep {
			continue
		}
		p := *b.config.Process
		p.Args = []string{"cat", "/proc/keys"}
		pid, err := b.Exec(t.Context(), "c", oci.ExecOptions{Process: &p, IO: oci.IO{Stdout: b.out, Stderr: b.out}})
		b.must(err)
		child, err := b.Child(pid)
		b.must(err)
		if code := b.wait(child); code != 0 || strings.Count(b.output(), own) != 2 || strings.Contains(b.output(), "of-the-caller") {
			t.Errorf("exit %d, together they see:\n%s", code, b.output())
		}
	}
}
