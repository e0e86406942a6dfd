package attacks

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/attacks.md")

// attack is one row of the table.
type attack struct {
	name       string        // short, unique
	what       string        // what the attacker does and gains; the CVE where there is one
	mitigation string        // the one thing that stops it here
	setup      change        // canary, hostile image and what runs
	hostIDs    bool          // base has no user namespace, which alone would stop it
	base       change        // takes the other mitigations away
	off        change        // takes the mitigation away
	needs      func() string // why the machine cannot show it; "" if it can
	refused    string        // part of the engine's answer where it does not run such a container
	alone      bool          // it shares addresses with others of its kind
	dies       bool          // the attacker does not live to say that it failed
}

// table is every attack.
func table() []attack {
	return slices.Concat(calls(), privileges(), programs(), devices(), namespaces(), files(), mounts(), places(), descriptors(), limits(), networks(), layers(), images())
}

func TestAttacks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	t.Run("table", func(t *testing.T) {
		var alone []attack
		for _, a := range table() {
			if a.alone {
				alone = append(alone, a)
				continue
			}
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				a.run(t)
			})
		}
		t.Run("network", func(t *testing.T) {
			t.Parallel()
			for _, a := range alone {
				t.Run(a.name, a.run)
			}
		})
	})
}

func (a attack) run(t *testing.T) {
	if a.needs != nil {
		if why := a.needs(); why != "" {
			t.Skip(why)
		}
	}
	try := func(t *testing.T, userns bool, changes ...change) (result, bool) {
		b := newBox(t, userns)
		for _, c := range append([]change{a.setup}, changes...) {
			if c != nil {
				c(b)
			}
		}
		r := b.drive()
		return r, b.judge(r)
	}
	t.Run("default", func(t *testing.T) {
		r, got := try(t, true)
		a.judge(t, r, false, got)
	})
	if a.hostIDs || a.base != nil {
		t.Run("holds", func(t *testing.T) {
			r, got := try(t, !a.hostIDs, a.base)
			a.judge(t, r, false, got)
			if r.refused != nil && !strings.Contains(r.refused.Error(), a.refused) {
				t.Errorf("refused for another reason: %v", r.refused)
			}
		})
	}
	t.Run("works without "+a.mitigation, func(t *testing.T) {
		r, got := try(t, !a.hostIDs, a.base, a.off)
		a.judge(t, r, true, got)
	})
}

// judge compares the end of a run with what it should be.
func (a attack) judge(t *testing.T, r result, want, got bool) {
	t.Helper()
	t.Logf("%s: exit %d %.300s %v", a.what, r.code, strings.TrimSpace(r.err), r.refused)
	if got != want {
		t.Errorf("the attack worked: %t, want %t; exit %d, output %.300q %.300q, refused %v", got, want, r.code, r.out, r.err, r.refused)
	}
	// An attack that did not even run was not stopped by the mitigation.
	if r.refused != nil && a.refused == "" {
		t.Errorf("no container was made: %v", r.refused)
	}
	if r.refused == nil && r.code != 0 && r.code != 1 && r.code != worked && (want || !a.dies) {
		t.Errorf("the attacker died: exit %d, %q", r.code, r.err)
	}
}

// TestTable holds what the table promises, and the page made of it.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range table() {
		if seen[a.name] || a.name == "" || a.what == "" || a.mitigation == "" || a.setup == nil || a.off == nil {
			t.Errorf("attack %q is there twice, or incomplete", a.name)
		}
		seen[a.name] = true
	}
	if len(seen) < 60 {
		t.Errorf("%d attacks, want at least 60", len(seen))
	}
	needSource(t)
	const page = "../../docs/attacks.md"
	want := document(table())
	if *update {
		must(t, os.WriteFile(page, want, 0o644))
	}
	if got, err := os.ReadFile(page); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not in step with the table (%v): go test ./sandbox/attacks -run TestTable -update", page, err)
	}
}

func document(rows []attack) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Attacks on containers\n\n"+
		"Made from the table in `sandbox/attacks` by `go test ./sandbox/attacks -run TestTable -update`; the test fails when this page and the table differ.\n\n"+
		"`go test ./sandbox/attacks -v` runs the %d attacks against real containers. Each must fail with the default hardening. \"Alone\" says what else was taken away so that\n"+
		"only the named mitigation is left: the attack must still fail. Then the mitigation is switched off, and the attack must work, so no test is empty.\n\n"+
		"| attack | what it does | stopped by | alone |\n|---|---|---|---|\n", len(rows))
	for _, a := range rows {
		alone := "the default"
		switch {
		case a.hostIDs && a.base != nil:
			alone = "without user namespace and others"
		case a.hostIDs:
			alone = "without user namespace"
		case a.base != nil:
			alone = "without others"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", a.name, a.what, a.mitigation, alone)
	}
	return b.Bytes()
}

// TestOnlyTestsLoosen makes sure that nothing but tests can take a step away.
func TestOnlyTestsLoosen(t *testing.T) {
	needSource(t)
	n := 0
	must(t, filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(data, []byte("loosen.With(")) {
			return err
		}
		if n++; !strings.HasSuffix(path, "_test.go") {
			t.Errorf("%s weakens containers", path)
		}
		return nil
	}))
	if n == 0 {
		t.Error("not even the tests do: the check looks for the wrong thing")
	}
}

func needSource(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("../../go.mod"); err != nil {
		t.Skip("the test runs away from its source:", err)
	}
}
