// Ocivalidation runs the validation suite of the OCI runtime-tools against runc and
// `naru oci`, side by side, and prints a table. It fails when naru fails a check
// that runc passes. `make oci-validation` calls it in a mount namespace of its own,
// since one program of the suite leaks mounts.
//
// One run: fetch the suite's module, build its programs, run each with RUNTIME set to
// one runtime and then the other, read what they say (TAP), compare check by check.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is the version of the suite; its last release is from 2019.
const suite = "github.com/opencontainers/runtime-tools@v0.9.1-0.20251114084447-edf4cb3d2116"

// programTime bounds one program of the suite.
const programTime = 150 * time.Second

// repeats is how often a program is run again when a check was lost in it: some want to
// find "true" still running (pidfile, killsig), so that the slower runtime passes now and then.
const repeats = 3

func main() {
	work := flag.String("work", "bin/.oci-validation", "directory, hidden from ./..., for the suite's sources and programs")
	naru := flag.String("naru", "bin/naru", "naru")
	table := flag.String("table", "", "file that receives the table")
	flag.Parse()
	if err := run(*work, *naru, *table, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "oci-validation:", err)
		os.Exit(1)
	}
}

func run(work, naru, table string, only []string) error {
	work, err := filepath.Abs(work)
	if err != nil {
		return err
	}
	programs, err := build(work)
	if err != nil {
		return err
	}
	shim, err := link(work, naru)
	if err != nil {
		return err
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "oci-validation-")
	if err == nil {
		err = os.Chmod(tmp, 0o755) // root of a user namespace must get through it
	}
	if err != nil {
		return err
	}
	out := header(runc)
	lost := 0
	var sum [2]result
	for _, p := range programs {
		if len(only) > 0 && !slices.Contains(only, p) {
			continue
		}
		a, b := validate(work, p, runc, tmp), validate(work, p, shim, tmp)
		missing := a.lost(b)
		for range repeats {
			if len(missing) == 0 {
				break
			}
			a, b = validate(work, p, runc, tmp), validate(work, p, shim, tmp)
			missing = a.lost(b)
		}
		lost += len(missing)
		sum[0].add(a)
		sum[1].add(b)
		row := fmt.Sprintf("| %s | %s | %s | %s |\n", p, a, b, strings.Join(missing, "; "))
		fmt.Print(row)
		out += row
	}
	out += fmt.Sprintf("| **all** | %s | %s | %d |\n", &sum[0], &sum[1], lost)
	fmt.Print(out[strings.LastIndex(out, "| **all**"):])
	if err := clean(tmp); err != nil {
		return err
	}
	if table != "" {
		if err := os.WriteFile(table, []byte(out), 0o644); err != nil {
			return err
		}
	}
	if lost > 0 {
		return fmt.Errorf("%d checks that runc passes fail", lost)
	}
	return nil
}

func header(runc string) string {
	version := func(path string) string {
		b, err := exec.Command(path, "--version").Output()
		line, _, _ := strings.Cut(string(b), "\n")
		if err != nil {
			return err.Error()
		}
		return line
	}
	return "# OCI runtime-tools validation\n\n`make oci-validation` wrote this: " + suite + "\nwith " + version(runc) + " and naru oci.\n\n" +
		"Passed / failed / skipped checks of each program of the suite. A program that exits with an error says so.\n" +
		"The last column lists checks that runc passes and naru does not, in each of up to four runs: it must be empty.\n\n" +
		"| program | runc | naru oci | lost |\n|---|---|---|---|\n"
}

// build copies the module, whose vendor folder is incomplete, and builds it.
func build(work string) ([]string, error) {
	src, bin := filepath.Join(work, "src"), filepath.Join(work, "src", "programs")
	if _, err := os.Stat(filepath.Join(work, "built")); err != nil {
		b, err := exec.Command("go", "mod", "download", "-json", suite).Output()
		var m struct{ Dir string }
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			return nil, fmt.Errorf("fetch the suite: %w", err)
		}
		if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o755), os.CopyFS(src, os.DirFS(m.Dir))); err != nil {
			return nil, err
		}
		for _, args := range [][]string{{"-o", "runtimetest", "./cmd/runtimetest"}, {"-o", "programs/", "./validation/..."}} {
			c := exec.Command("go", append([]string{"build", "-mod=mod", "-tags", "netgo osusergo"}, args...)...)
			c.Dir, c.Stderr = src, os.Stderr
			c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-modcacherw")
			if err := errors.Join(os.Chmod(src, 0o755), os.Chmod(filepath.Join(src, "go.mod"), 0o644), os.Chmod(filepath.Join(src, "go.sum"), 0o644), os.MkdirAll(bin, 0o755), c.Run()); err != nil {
				return nil, fmt.Errorf("build the suite: %w", err)
			}
		}
		if err := os.WriteFile(filepath.Join(work, "built"), nil, 0o644); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(bin)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// link makes naru an OCI runtime by its name.
func link(work, naru string) (string, error) {
	naru, err := filepath.Abs(naru)
	if err != nil {
		return "", err
	}
	shim := filepath.Join(work, "naru-oci")
	if err := os.Remove(shim); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return shim, os.Symlink(naru, shim)
}

// result is what a program said.
type result struct {
	ok, failed      map[string]int
	passes, skipped int
	fails           int
	exit            string
}

func (r *result) String() string {
	return fmt.Sprintf("%d / %d / %d%s", r.passes, r.fails, r.skipped, r.exit)
}

func (r *result) add(other *result) {
	r.passes, r.fails, r.skipped = r.passes+other.passes, r.fails+other.fails, r.skipped+other.skipped
}

// lost lists the checks that passed more often here than there.
func (r *result) lost(there *result) []string {
	var names []string
	for name, n := range r.ok {
		if there.ok[name] < n {
			names = append(names, fmt.Sprintf("%s (%d of %d)", name, there.ok[name], n))
		}
	}
	if r.exit == "" && there.exit != "" {
		names = append(names, "ends"+there.exit)
	}
	slices.Sort(names)
	return names
}

// validate runs one program. What differs from run to run is taken out of the names
// of its checks.
func validate(work, program, runtime, tmp string) *result {
	ctx, cancel := context.WithTimeout(context.Background(), programTime)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(work, "src", "programs", program))
	c.Dir = filepath.Join(work, "src")
	c.Env = append(os.Environ(), "RUNTIME="+runtime, "TMPDIR="+tmp)
	c.WaitDelay = time.Second
	out, err := c.Output()
	r := &result{ok: map[string]int{}, failed: map[string]int{}}
	if err != nil {
		r.exit = ", " + err.Error()
	}
	variable := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|(ocitest|target|mount|test|example)[0-9]+`)
	check := regexp.MustCompile(`(?m)^(not ok|ok) \d+( - | )?(.*)$`)
	for _, m := range check.FindAllStringSubmatch(string(out), -1) {
		name := variable.ReplaceAllString(m[3], "$1…")
		switch {
		case strings.Contains(strings.ToUpper(m[0]), "# SKIP"):
			r.skipped++
		case m[1] == "ok":
			r.ok[name]++
			r.passes++
		default:
			r.failed[name]++
			r.fails++
		}
	}
	return r
}

// clean removes what the suite left, never through a mount.
func clean(tmp string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	slices.Reverse(lines)
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) > 4 && strings.HasPrefix(f[4], tmp+"/") {
			if err := syscall.Unmount(f[4], syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", f[4], err)
			}
		}
	}
	c := exec.Command("rm", "-rf", "--one-file-system", tmp)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("rm: %w: %s", err, out)
	}
	return nil
}
