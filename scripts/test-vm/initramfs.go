package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const busybox = "/bin/busybox"

//go:embed guest/init
var initScript []byte

// writeInitramfs makes the small root that only finds the disk: pivot_root, which
// every container needs, does not work on an initramfs.
func writeInitramfs(ctx context.Context, path string, k kernel) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	var a archive
	for _, dir := range []string{"bin", "dev", "proc", "sys", "disk", "modules"} {
		a.add(dir, 0o40755, nil)
	}
	a.add("bin/busybox", 0o100755, program)
	a.add("init", 0o100755, initScript)
	// ext4 asks for its checksum by name, which modules.dep does not know.
	modules, err := k.closure("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
	if err != nil {
		return err
	}
	for i, file := range modules {
		data, err := module(ctx, file)
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(file)), 0o100644, data)
	}
	a.add("TRAILER!!!", 0, nil)
	return os.WriteFile(path, a.Bytes(), 0o600)
}

// module reads a module, without its compression.
func module(ctx context.Context, file string) ([]byte, error) {
	for suffix, program := range map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"} {
		if strings.HasSuffix(file, suffix) {
			out, err := output(ctx, program, "-dc", file)
			return []byte(out), err
		}
	}
	return os.ReadFile(file)
}

// archive is a cpio archive in the kernel's format, "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	fmt.Fprintf(a, "070701")
	links, nothing := 1, 0
	for _, field := range []int{
		a.inode, mode, nothing, nothing, links, nothing, len(data),
		nothing, nothing, nothing, nothing, len(name) + 1, nothing,
	} {
		fmt.Fprintf(a, "%08X", field)
	}
	a.WriteString(name)
	a.WriteByte(0)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
