package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed guest/run
var runScript []byte

// tools are the programs of this machine that tests call, beside busybox: the
// guest gets copies with their libraries. A test that misses one skips.
var tools = strings.Fields(`sh cat ls rm sleep stat mount umount unshare nsenter modprobe ip nft sysctl ps
	iptables ip6tables iptables-save ip6tables-save iptables-nft ip6tables-nft iptables-nft-save iptables-legacy ip6tables-legacy
	pivot_root setpriv bzip2 xz zstd tar runc umoci skopeo docker-registry`)

// extras are what these programs load at run time, as patterns.
var extras = []string{
	"/usr/lib/*/xtables/*.so", "/etc/protocols", "/etc/services", "/etc/iproute2/*", "/usr/share/iproute2/*", "/etc/ethertypes", "/etc/containers/policy.json",
}

// testTimeLimit is for one package.
const testTimeLimit = "20m"

// guest is what the disk is made of.
type guest struct {
	tree   string // the folder that becomes the disk
	kernel kernel
	tests  []test
}

// writeDisk makes the file system; absent are the tools that this machine lacks.
func writeDisk(ctx context.Context, path string, g guest) (absent []string, err error) {
	if err := g.skeleton(); err != nil {
		return nil, err
	}
	if absent, err = g.copyTools(ctx); err != nil {
		return nil, err
	}
	if err := g.linkApplets(ctx); err != nil {
		return nil, err
	}
	if err := g.copyTests(ctx); err != nil {
		return nil, err
	}
	if g.kernel.modules != "" {
		to := filepath.Join(g.tree, "lib/modules", filepath.Base(g.kernel.modules))
		if err := g.copyTree(ctx, g.kernel.modules, to); err != nil {
			return nil, err
		}
	}
	_, err = output(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", g.tree, path, "6G")
	return absent, err
}

// skeleton makes the folders, and the few files that programs look for.
func (g guest) skeleton() error {
	for _, dir := range strings.Fields("usr/bin usr/sbin usr/lib usr/lib64 dev proc sys run etc root tmp var/lib var/tmp src tests") {
		if err := os.MkdirAll(filepath.Join(g.tree, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+dir, filepath.Join(g.tree, dir)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(g.tree, dir), 0o777|fs.ModeSticky); err != nil {
			return err
		}
	}
	var list strings.Builder
	for _, t := range g.tests {
		fmt.Fprintln(&list, t.pkg, t.file, t.dir, testTimeLimit, t.pattern)
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":  "127.0.0.1 localhost\n127.0.1.1 test-vm\n",
		// A resolver that nobody is: the guest has no network.
		"etc/resolv.conf": "nameserver 192.0.2.53\n",
		"tests/list":      list.String(),
	} {
		if err := os.WriteFile(filepath.Join(g.tree, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	shadow := os.WriteFile(filepath.Join(g.tree, "etc/shadow"), []byte("root:*:1::::::\n"), 0o600)
	return errors.Join(shadow, os.WriteFile(filepath.Join(g.tree, "tests/run"), runScript, 0o755))
}

// copyTools copies programs to where they are here, with the libraries that ldd
// names, and keeps the names that are links here.
func (g guest) copyTools(ctx context.Context) (absent []string, err error) {
	files := map[string]bool{busybox: true}
	for _, name := range tools {
		found, err := exec.LookPath(name)
		if err != nil {
			absent = append(absent, name)
			continue
		}
		path, err := filepath.EvalSymlinks(found)
		if err != nil {
			return nil, err
		}
		files[path] = true
		if filepath.Base(path) != name { // some act by the name that they are called by
			if err := os.Symlink(path, filepath.Join(g.tree, found)); err != nil {
				return nil, err
			}
		}
		for _, library := range libraries(ctx, path) {
			files[library] = true
		}
	}
	for _, pattern := range extras {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			files[path] = true
		}
	}
	for path := range files {
		if err := g.copyFile(path); err != nil {
			return nil, err
		}
	}
	return absent, nil
}

// libraries are the paths in ldd's lines "name => path (address)" and
// "path (address)"; a static program has none.
func libraries(ctx context.Context, path string) (list []string) {
	out, err := output(ctx, "ldd", path)
	if err != nil {
		return nil
	}
	for word := range strings.FieldsSeq(out) {
		if strings.HasPrefix(word, "/") {
			list = append(list, word)
		}
	}
	return list
}

// copyFile copies a file's content, through links, to the same path in the tree.
func (g guest) copyFile(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	to := filepath.Join(g.tree, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}

// linkApplets gives busybox' commands to whatever is not there as a tool.
func (g guest) linkApplets(ctx context.Context) error {
	list, err := output(ctx, busybox, "--list")
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(list) {
		if _, err := os.Lstat(filepath.Join(g.tree, "usr/sbin", applet)); err == nil {
			continue
		}
		err := os.Symlink(busybox, filepath.Join(g.tree, "usr/bin", applet))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// copyTests puts the programs into /tests, and beside each the testdata that it
// finds from its working directory.
func (g guest) copyTests(ctx context.Context) error {
	for _, t := range g.tests {
		if err := g.copyTree(ctx, filepath.Join(filepath.Dir(g.tree), "tests", t.file), filepath.Join(g.tree, "tests", t.file)); err != nil {
			return err
		}
		data := filepath.Join(g.tree, "src", t.dir)
		if err := os.MkdirAll(data, 0o755); err != nil {
			return err
		}
		from := filepath.Join(t.dir, "testdata")
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if err := g.copyTree(ctx, from, filepath.Join(data, "testdata")); err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies a file or folder, without its bytes where the file system can.
func (g guest) copyTree(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	_, err := output(ctx, "cp", "-a", "--no-preserve=ownership", "--reflink=auto", from, to)
	return err
}
