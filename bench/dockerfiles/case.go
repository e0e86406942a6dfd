package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// testCase is one build: a txtar archive with the files of its context. The lines
// before the first file say the rest, one directive each:
//
//	flags --target x --build-arg A=1    flags of build, as Docker has them
//	mode FILE 0640                      instead of 0644 (0755 of a directory)
//	symlink FILE TARGET
//	hardlink FILE OLD
//	mtime FILE 2001-02-03T04:05:06Z
//	xattr FILE NAME VALUE
//	fifo FILE
//	tar FILE DIR [gz]                   pack DIR of the context, which goes then
//	fails TEXT                          naru must refuse it, with this text
//	peers NAME,NAME                     those that know what it uses; default: all
//	differs NAME TEXT                   why that peer makes something else
//
// Lines that begin with # and blank ones are comments. A file Dockerfile is what is
// built; base/Dockerfile, if it is there, is built before, from the same context, as
// the image "made".
type testCase struct {
	name    string
	files   []txtar.File
	steps   [][]string // how the context is changed
	flags   []string
	fails   string
	peers   []string
	differs map[string]string
}

// loadCases reads all cases of a directory, in the order of their names.
func loadCases(dir string) ([]*testCase, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*.txtar"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var all []*testCase
	for _, p := range paths {
		c, err := loadCase(dir, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func loadCase(dir, path string) (*testCase, error) {
	a, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	name, err := filepath.Rel(dir, strings.TrimSuffix(path, ".txtar"))
	if err != nil {
		return nil, err
	}
	c := &testCase{name: name, files: a.Files, differs: map[string]string{}}
	for line := range strings.Lines(string(a.Comment)) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), words[0]))
		switch words[0] {
		case "flags":
			c.flags = append(c.flags, words[1:]...)
		case "fails":
			c.fails = rest
		case "peers":
			c.peers = strings.Split(rest, ",")
		case "differs":
			_, why, ok := strings.Cut(rest, " ")
			if !ok {
				return nil, fmt.Errorf("directive %q: say why", line)
			}
			c.differs[words[1]] = why
		case "mode", "symlink", "hardlink", "mtime", "xattr", "fifo", "tar":
			c.steps = append(c.steps, words)
		default:
			return nil, fmt.Errorf("unknown directive %q", words[0])
		}
	}
	return c, nil
}

// hasBase tells whether the case has a base image of its own.
func (c *testCase) hasBase() bool {
	return slices.ContainsFunc(c.files, func(f txtar.File) bool { return f.Name == "base/Dockerfile" })
}

// write makes the context below dir.
func (c *testCase) write(dir string) error {
	for _, f := range c.files {
		p := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, f.Data, 0o644); err != nil {
			return err
		}
	}
	for _, s := range c.steps {
		if err := change(dir, s); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(s, " "), err)
		}
	}
	return nil
}

// change carries out one directive.
func change(dir string, words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("no file named")
	}
	at, args := filepath.Join(dir, words[1]), append(words[2:], "", "")
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	switch words[0] {
	case "mode":
		n, err := strconv.ParseUint(args[0], 8, 32)
		if err != nil {
			return err
		}
		return unix.Chmod(at, uint32(n))
	case "symlink":
		return os.Symlink(args[0], at)
	case "hardlink":
		return os.Link(filepath.Join(dir, args[0]), at)
	case "fifo":
		return unix.Mkfifo(at, 0o644)
	case "xattr":
		return unix.Lsetxattr(at, args[0], []byte(args[1]), 0)
	case "mtime":
		t, err := time.Parse(time.RFC3339, args[0])
		if err != nil {
			return err
		}
		ts := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
		return unix.UtimesNanoAt(unix.AT_FDCWD, at, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	return pack(at, filepath.Join(dir, args[0]), args[1] == "gz")
}

// pack writes a tar of a directory, with numbers for owners that a test can
// recognise and a fixed time, and removes the directory.
func pack(file, dir string, compress bool) error {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		return packOne(w, dir, p, d)
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return err
	}
	data := buf.Bytes()
	if compress {
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		if _, err := zw.Write(data); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		data = z.Bytes()
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

func packOne(w *tar.Writer, dir, p string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(dir, p)
	if err != nil {
		return err
	}
	h.Name = filepath.ToSlash(rel)
	if d.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime = 123, 456, "", "", time.Unix(1e9, 0)
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	data, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// baseImage writes the image that cases call "base", as a tar of its root.
func baseImage(file string) error {
	dir, err := os.MkdirTemp("", "base")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"bin", "etc", "dev", "proc", "sys", "run", "home/app", "root", "usr/bin", "var/lib", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is not installed: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), busybox, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "ls", "cat", "echo", "mkdir", "rm", "mv", "cp", "ln", "chmod", "chown", "touch", "test", "[", "id", "env",
		"pwd", "sleep", "true", "false", "printf", "stat", "find", "sort", "grep", "sed", "tr", "head", "mkfifo", "rmdir", "wc", "umask", "dd", "mount", "hostname", "tar"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	texts := map[string]string{
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n",
		"etc/group":    "root:x:0:\napp:x:1001:\nstaff:x:50:app\nweb:x:33:\n",
		"data/old.txt": "old\n", "etc/hosts": "", "etc/hostname": "", "etc/resolv.conf": "",
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return packRoot(file, dir)
}

// packRoot is pack for an image: owned by root, and the directory stays.
func packRoot(file, dir string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	err = w.AddFS(os.DirFS(dir))
	if err == nil {
		err = w.Close()
	}
	return errors.Join(err, f.Close())
}
