package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// said is what a guest says of two packages; ^V marks the lines for test2json.
const said = `@test-vm kernel 6.1.0
@test-vm begin naru/a
` + "\x16=== RUN   TestGood\n\x16--- PASS: TestGood (0.10s)\n\x16=== NAME  \n" +
	"\x16=== RUN   TestTool\n    a_test.go:9: needs runc: not found\n\x16--- SKIP: TestTool (0.00s)\n\x16=== NAME  \n\x16PASS\n" + `
@test-vm end naru/a 0
@test-vm begin naru/b
` + "\x16=== RUN   TestBad\n    b_test.go:7: it is broken\n\x16--- FAIL: TestBad (0.10s)\n\x16=== NAME  \n\x16FAIL\n" + `
@test-vm end naru/b 1
`

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name, said string
		want       []string
		err        string
	}{
		{"all well", strings.Split(said, "@test-vm begin naru/b")[0], []string{"Linux 6.1.0 booted", "ok  \tnaru/a\t", "1 passed, 0 failed, 1 skipped", "\tTestTool: needs runc: not found\n"}, "never ran: naru/b"},
		{"a failure is printed", said, []string{"it is broken", "FAIL\tnaru/b\t", "0 passed, 1 failed, 0 skipped"}, "failed: naru/b"},
		{"the guest dies in a test", strings.Split(said, "@test-vm end naru/b")[0], []string{"it is broken"}, "ended while it ran naru/b"},
		{"nothing matches", "@test-vm begin naru/b\ntesting: warning: no tests to run\nPASS\n@test-vm end naru/b 0", []string{"no test ran", "FAIL"}, "failed: naru/b"},
		{"a named test is gone", "@test-vm begin naru/c\n\x16=== RUN   TestGood\n\x16--- PASS: TestGood (0.10s)\n\x16=== NAME  \n\x16PASS\n@test-vm end naru/c 0", []string{"there is no TestNamed any more", "FAIL\tnaru/c"}, "failed: naru/c"},
		{"killed without a word", "@test-vm begin naru/b\n@test-vm end naru/b 137", []string{"FAIL"}, "failed: naru/b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			r := newReport(&out, []test{{pkg: "naru/a"}, {pkg: "naru/b"}, {pkg: "naru/c", names: []string{"TestGood", "TestNamed"}}})
			for line := range strings.Lines(tt.said) {
				r.read(strings.TrimSuffix(line, "\n"))
			}
			if err := r.finish(); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("finish: %v, want %q", err, tt.err)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in the report:\n%s", want, out.String())
				}
			}
		})
	}
}

func TestClosureIsInOrder(t *testing.T) {
	dir := t.TempDir()
	deps := "kernel/b/virtio-blk.ko.xz: kernel/v/ring.ko kernel/v/virtio.ko\nkernel/v/ring.ko: kernel/v/virtio.ko\nkernel/v/virtio.ko:\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(deps), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := kernel{modules: dir}.closure("virtio_blk", "ext4", "virtio")
	for i := range list {
		list[i] = filepath.Base(list[i])
	}
	if want := []string{"virtio.ko", "ring.ko", "virtio-blk.ko.xz"}; err != nil || !slices.Equal(list, want) {
		t.Errorf("got %v, %v; want %v", list, err, want)
	}
}

// TestArchiveIsReadByCpio: busybox' cpio is as strict as the kernel.
func TestArchiveIsReadByCpio(t *testing.T) {
	if _, err := exec.LookPath(busybox); err != nil {
		t.Skip("needs busybox: ", err)
	}
	var a archive
	a.add("bin", 0o40755, nil)
	a.add("bin/odd", 0o100755, []byte("12345"))
	a.add("init", 0o100644, []byte("abc\n"))
	a.add("TRAILER!!!", 0, nil)
	dir := t.TempDir()
	cmd := exec.Command(busybox, "cpio", "-i")
	cmd.Dir, cmd.Stdin = dir, &a.Buffer
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"bin/odd": "12345", "init": "abc\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
