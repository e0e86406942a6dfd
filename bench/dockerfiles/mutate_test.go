package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mutation changes one input of a case whose context is in dir. It reports whether
// there was something to change.
type mutation struct {
	name string
	do   func(c *testCase, dir string) (bool, error)
}

// mutations are the inputs of a build. Each is a mistake that some builder makes or
// has made: to trust size and time, to leave something out of a key.
func mutations() []mutation {
	return []mutation{
		{"content of the same size and time", sameSizeAndTime},
		{"content", onFile(func(p string, data []byte) error { return os.WriteFile(p, append(data, "more"...), 0o644) })},
		{"mode", onFile(func(p string, _ []byte) error { return unix.Chmod(p, 0o751) })},
		{"xattr", onFile(func(p string, _ []byte) error { return unix.Setxattr(p, "user.note", []byte("new"), 0) })},
		{"gone", onFile(func(p string, _ []byte) error { return os.Remove(p) })},
		{"became a link", onFile(func(p string, _ []byte) error {
			return errors.Join(os.Rename(p, p+".moved"), os.Symlink(filepath.Base(p)+".moved", p))
		})},
		{"became a hard link", onFile(func(p string, _ []byte) error { return os.Link(p, p+".twin") })},
		{"a neighbour", onFile(func(p string, _ []byte) error { return os.WriteFile(p+".new", []byte("new"), 0o600) })},
		{"link target", linkTarget},
		{"ignore line", ignoreLine},
		{"build argument", buildArgument},
		{"base", edit("base/Dockerfile", func(t string) string { return t + "RUN echo changed > /base-changed\nENV BASE=changed\n" })},
		{"environment", edit("Dockerfile", func(t string) string {
			return regexp.MustCompile(`(?mi)^(from .*)$`).ReplaceAllString(t, "$1\nENV MUTATED=1")
		})},
		{"user", edit("Dockerfile", func(t string) string { return regexp.MustCompile(`(?m)^USER app$`).ReplaceAllString(t, "USER web") })},
		{"directory", edit("Dockerfile", func(t string) string { return strings.ReplaceAll(t, "WORKDIR /w", "WORKDIR /v") })},
		{"owner", edit("Dockerfile", func(t string) string {
			return regexp.MustCompile(`--chown=\S+`).ReplaceAllString(t, "--chown=9:10")
		})},
		{"secret id", func(c *testCase, dir string) (bool, error) {
			for i, f := range c.flags {
				c.flags[i] = strings.ReplaceAll(f, "id=s,", "id=s2,")
			}
			return edit("Dockerfile", func(t string) string { return strings.ReplaceAll(t, "id=s", "id=s2") })(c, dir)
		}},
		{"earlier stage", edit("Dockerfile", func(t string) string {
			return regexp.MustCompile(`(?m)^RUN mkdir /o`).ReplaceAllString(t, "RUN mkdir /o && chmod 711 /o && echo new > /o/new.x")
		})},
	}
}

// contextFile is a file that builds copy; the build's own files are not.
func contextFile(dir string) (found string, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.Type().IsRegular() && !strings.Contains(name, "ockerfile") && name != ".dockerignore" && !strings.HasSuffix(name, ".tar") && !strings.HasSuffix(name, ".tgz") && name != "secret.txt" {
			if info, err := d.Info(); err == nil && info.Size() > 0 {
				found = p
				return fs.SkipAll
			}
		}
		return nil
	})
	return found, err
}

func onFile(f func(p string, data []byte) error) func(*testCase, string) (bool, error) {
	return func(_ *testCase, dir string) (bool, error) {
		p, err := contextFile(dir)
		if err != nil || p == "" {
			return false, err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return false, err
		}
		return true, f(p, data)
	}
}

// sameSizeAndTime writes other bytes into the same inode and puts its time back.
func sameSizeAndTime(_ *testCase, dir string) (bool, error) {
	p, err := contextFile(dir)
	if err != nil || p == "" {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return false, err
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	_, err = f.Write(bytes.Repeat([]byte("#"), int(st.Size)))
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	return true, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func linkTarget(c *testCase, dir string) (bool, error) {
	for _, s := range c.steps {
		if s[0] == "symlink" {
			p := filepath.Join(dir, s[1])
			if _, err := os.Lstat(p); err != nil {
				continue // it was packed
			}
			return true, errors.Join(os.Remove(p), os.Symlink("elsewhere", p), os.WriteFile(filepath.Join(filepath.Dir(p), "elsewhere"), []byte("e"), 0o644))
		}
	}
	return false, nil
}

func ignoreLine(_ *testCase, dir string) (bool, error) {
	p, err := contextFile(dir)
	if err != nil || p == "" {
		return false, err
	}
	rel, err := filepath.Rel(dir, p)
	if err != nil {
		return false, err
	}
	old, err := os.ReadFile(filepath.Join(dir, ".dockerignore"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(string(old)+"\n"+rel+"\n"), 0o644)
}

func buildArgument(c *testCase, dir string) (bool, error) {
	for i, f := range c.flags {
		if key, value, ok := strings.Cut(f, "="); ok && i > 0 && c.flags[i-1] == "--build-arg" {
			c.flags[i] = key + "=" + value + "9"
			return true, nil
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	m := regexp.MustCompile(`(?m)^ARG ([A-Z]+)=`).FindSubmatch(data)
	if m == nil || err != nil {
		return false, err
	}
	c.flags = append(c.flags, "--build-arg", string(m[1])+"=mutated")
	return true, nil
}

func edit(name string, change func(string) string) func(*testCase, string) (bool, error) {
	return func(_ *testCase, dir string) (bool, error) {
		p := filepath.Join(dir, name)
		old, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		text := change(string(old))
		return text != string(old), os.WriteFile(p, []byte(text), 0o644)
	}
}

// TestNoStaleHit builds cases, changes one input, and builds again: what the cache
// helped to make must be what is made without it. A sample of the mutations is
// tried; NARU_DOCKERFILES=all tries every one with every case.
func TestNoStaleHit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("builds run in containers, which need root")
	}
	n, dir := prepared(t)
	cases, err := loadCases("testdata")
	if err != nil {
		t.Fatal(err)
	}
	all := os.Getenv("NARU_DOCKERFILES") == "all"
	tried, changed := 0, map[string]int{}
	for i, c := range cases {
		if c.fails != "" {
			continue
		}
		for k, m := range mutations() {
			if !all && (i*7+k)%29 != 0 {
				continue
			}
			same, err := mutate(t, n, c, m, dir)
			if err != nil {
				t.Fatalf("%s, %s: %v", c.name, m.name, err)
			}
			if same == notApplicable {
				continue
			}
			tried++
			if same == differs {
				changed[m.name]++
			}
		}
	}
	t.Logf("%d mutated builds, none stale; results that the mutation changed: %v", tried, changed)
	if want := map[bool]int{true: 1000, false: 30}[all]; tried < want {
		t.Errorf("%d mutations were tried, want %d", tried, want)
	}
	if len(changed) < 8 {
		t.Errorf("only %v changed what was built: the mutations do nothing", changed)
	}
}

type effect int

const (
	notApplicable effect = iota
	unchanged
	differs
)

// mutate does one mutation and reports a stale result.
func mutate(t *testing.T, n naru, original *testCase, m mutation, dir string) (effect, error) {
	c := *original
	c.flags = slices.Clone(c.flags)
	context, err := os.MkdirTemp(dir, "mutated")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(context)
	if err := c.write(context); err != nil {
		return 0, err
	}
	before, err := built(t, n, &c, context, true)
	if err != nil {
		return 0, err
	}
	if ok, err := m.do(&c, context); err != nil || !ok {
		return notApplicable, err
	}
	cached, err1 := built(t, n, &c, context, true)
	fresh, err2 := built(t, n, &c, context, false)
	if (err1 == nil) != (err2 == nil) || !slices.Equal(cached, fresh) {
		t.Errorf("%s, %s: with the cache (%v):\n%s\nwithout (%v):\n%s", c.name, m.name, err1, strings.Join(cached, "\n"), err2, strings.Join(fresh, "\n"))
	}
	if slices.Equal(before, cached) {
		return unchanged, nil
	}
	return differs, nil
}

// built is the result of a build as lines. Times are not among them: they are in no
// key, as in BuildKit.
func built(t *testing.T, n naru, c *testCase, context string, cache bool) ([]string, error) {
	n.cache = cache
	archive := context + ".tar"
	defer os.Remove(archive)
	if err := n.build(t.Context(), c, context, archive); err != nil {
		return nil, err
	}
	r, err := readArchive(archive)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.name, err)
	}
	old := regexp.MustCompile(` \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	lines := r.lines()
	for i := range lines {
		lines[i] = old.ReplaceAllString(lines[i], "")
	}
	return lines, nil
}
