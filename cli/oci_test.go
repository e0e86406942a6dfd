package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ociRun runs one command of `naru oci` with a state directory of the test's own.
func ociRun(t *testing.T, root string, args ...string) (string, int, string) {
	t.Helper()
	var out, errs bytes.Buffer
	err := Run(t.Context(), append([]string{"oci", "--root", root}, args...), &Env{Stdout: &out, Stderr: &errs})
	code := 0
	var exit *ExitError
	if errors.As(err, &exit) {
		code = exit.Code
	} else if err != nil {
		code = exitUnexpected
	}
	message := ""
	if err != nil {
		message = err.Error()
	}
	return out.String(), code, message
}

func TestOCICommands(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	root, dir := filepath.Join(t.TempDir(), "state"), t.TempDir()
	if _, code, err := ociRun(t, root, "spec", "--bundle", dir); code != 0 {
		t.Fatal(err)
	}
	if _, code, _ := ociRun(t, root, "spec", "--bundle", dir); code == 0 {
		t.Error("spec overwrites a config.json")
	}
	out, _, _ := ociRun(t, root, "features")
	if !json.Valid([]byte(out)) || !strings.Contains(out, "createContainer") {
		t.Errorf("features: %s", out)
	}
	log := filepath.Join(dir, "log")
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"run", "--bundle", dir + "/none", "c"}, exitEngine, "none"},
		{[]string{"run", "--bundle", dir, "c"}, exitEngine, "root.path"}, // there is no rootfs
		{[]string{"create", "--bundle", dir, "c"}, exitEngine, "process.terminal"},
		{[]string{"run", "--bundle", dir, "../c"}, exitEngine, `"../c"`},
		{[]string{"--systemd-cgroup", "list"}, exitUsage, "--systemd-cgroup"},
		{[]string{"--log-format", "xml", "list"}, exitUsage, "xml"},
		{[]string{"state", "c"}, exitUnexpected, "does not exist"},
		{[]string{"--log", log, "--log-format", "json", "delete", "c"}, exitUnexpected, "does not exist"},
		{[]string{"delete", "--force", "c"}, 0, ""},
		{[]string{"kill", "c", "MOON"}, exitUnexpected, "MOON"},
		{[]string{"create", "--no-pivot", "c"}, exitUsage, "--no-pivot"},
	} {
		if _, code, err := ociRun(t, root, tt.args...); code != tt.code || !strings.Contains(err, tt.want) {
			t.Errorf("%v: exit code %d, %q; want %d with %q", tt.args, code, err, tt.code, tt.want)
		}
	}
	if line, err := os.ReadFile(log); err != nil || !bytes.Contains(line, []byte(`"level":"error"`)) || !json.Valid(line) {
		t.Errorf("log %s, %v", line, err)
	}
	if out, _, _ := ociRun(t, root, "list", "--format", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("list: %s", out)
	}
}

func TestOCISignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{"TERM": 15, "sigterm": 15, "15": 15, "0": 0, "KILL": 9} {
		if got, err := ociSignal(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MOON", "99", "-1"} {
		if got, err := ociSignal(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestArguments(t *testing.T) {
	if got := Arguments([]string{"/x/naru-oci", "state"}); len(got) != 2 || got[0] != "oci" {
		t.Errorf("%q", got)
	}
	if got := Arguments([]string{"/x/naru", "state"}); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
