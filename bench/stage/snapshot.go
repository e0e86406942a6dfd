package stage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// stagePrefix begins the name of every stage's folder.
const stagePrefix = "naru-stage-"

// Snapshot is what a stage must leave as it found it.
type Snapshot map[string][]string

// TakeSnapshot looks at mounts, links, routes, firewall rules, cgroups and
// processes.
func TakeSnapshot(ctx context.Context) (Snapshot, error) {
	s := Snapshot{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, l := range strings.Split(strings.TrimSpace(string(mounts)), "\n") {
		s["mounts"] = append(s["mounts"], strings.Join(strings.Fields(l)[4:5], " "))
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		s["links"] = append(s["links"], l.Name())
	}
	for _, c := range [][]string{{"nft", "list", "ruleset"}, {"ip", "route"}} {
		if _, err := exec.LookPath(c[0]); err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, c[0], c[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(c, " "), err)
		}
		s[strings.Join(c, " ")] = strings.Split(string(out), "\n")
	}
	s["cgroups"] = cgroups()
	s["processes"] = processes()
	return s, nil
}

// cgroups lists the groups that belong to naru; others come and go by
// themselves on a living machine.
func cgroups() (list []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "/naru") {
			list = append(list, p)
		}
		return nil // groups vanish while one looks
	})
	return list
}

// processes lists those of any stage: what they run, or a file that they hold
// open, has a stage's folder in its name. (The workers of nginx write over
// their command line.)
func processes() (list []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(cmd) == 0 {
			continue // gone, or a kernel thread
		}
		text := string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '}))
		marks := []string{text}
		fds, _ := filepath.Glob(d + "/fd/*")
		for _, fd := range append(fds, d+"/cwd") {
			if to, err := os.Readlink(fd); err == nil {
				marks = append(marks, to)
			}
		}
		ours := slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(m, stagePrefix) })
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && ours && pid != os.Getpid() {
			list = append(list, strings.TrimSpace(text))
		}
	}
	return list
}

// Compare returns an error that names every difference.
func (s Snapshot) Compare(now Snapshot) error {
	var errs []error
	for what, was := range s {
		is := slices.Clone(now[what])
		was = slices.Clone(was)
		sort.Strings(is)
		sort.Strings(was)
		if slices.Equal(is, was) {
			continue
		}
		for _, l := range is {
			if !slices.Contains(was, l) {
				errs = append(errs, fmt.Errorf("%s: %q is new", what, l))
			}
		}
		for _, l := range was {
			if !slices.Contains(is, l) {
				errs = append(errs, fmt.Errorf("%s: %q is gone", what, l))
			}
		}
	}
	return errors.Join(errs...)
}

// BusyboxImage writes the root file system of the base image: one static
// program under many names, and the files that name users.
func BusyboxImage(path string) (err error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is needed: %w", err)
	}
	names, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox applets: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	file := func(name, text string, mode int64) error {
		return errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(text))}), write(w, text))
	}
	errs := []error{file("bin/busybox", string(busybox), 0o755)}
	for _, d := range []string{"etc/", "root/", "var/", "home/", "usr/", "usr/bin/"} {
		errs = append(errs, w.WriteHeader(&tar.Header{Name: d, Mode: 0o755, Typeflag: tar.TypeDir}))
	}
	errs = append(errs,
		w.WriteHeader(&tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}),
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n", 0o644),
		file("etc/group", "root:x:0:\nnobody:x:65534:\n", 0o644))
	for _, n := range strings.Fields(string(names)) {
		if n != "busybox" {
			errs = append(errs, w.WriteHeader(&tar.Header{Name: "bin/" + n, Linkname: "busybox", Typeflag: tar.TypeSymlink, Mode: 0o777}))
		}
	}
	return errors.Join(append(errs, w.Close())...)
}

func write(w *tar.Writer, text string) error {
	_, err := w.Write([]byte(text))
	return err
}
