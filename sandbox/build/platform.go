package build

import (
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"naru/sandbox/image"
)

// target is a platform, in the words of GOOS and GOARCH.
type target struct{ os, arch, variant string }

// native is what this machine runs without help.
func native() target {
	t := target{os: "linux", arch: runtime.GOARCH}
	if t.arch == "arm" {
		t.variant = "v7"
	}
	return t
}

func parseTarget(s string) (target, error) {
	goos, arch, variant, err := image.SplitPlatform(s)
	if err != nil {
		return target{}, err
	}
	if goos != "linux" {
		return target{}, fmt.Errorf("platform %s: only images for linux can be built", s)
	}
	if arch == "arm" && variant == "" {
		variant = "v7" // as containerd's normal form
	}
	return target{goos, arch, variant}, nil
}

func (t target) String() string {
	return strings.TrimSuffix(t.os+"/"+t.arch+"/"+t.variant, "/")
}

// fits tells whether an image's config is for the platform. One that does not
// say what it is for fits.
func (t target) fits(c image.Config) bool {
	if c.OS != "" && c.OS != t.os || c.Architecture != "" && c.Architecture != t.arch {
		return false
	}
	return t.arch != "arm" || c.Variant == "" || c.Variant <= t.variant // v6 runs on v7
}

// runnable says why no RUN of the platform can run here, or nothing.
func (t target) runnable() error {
	here := native()
	if t.arch == here.arch || here.arch == "amd64" && t.arch == "386" {
		return nil
	}
	if err := t.emulated("/proc/sys/fs/binfmt_misc"); err != nil {
		return fmt.Errorf("a step for %s cannot run on this machine, which is %s: %w", t, here, err)
	}
	return nil
}

// machine is how an ELF file of an architecture begins (elf(5)).
type machine struct {
	class elf.Class
	data  elf.Data
	code  elf.Machine
}

func machineOf(arch string) (machine, bool) {
	m, ok := map[string]machine{
		"amd64": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_X86_64}, "386": {elf.ELFCLASS32, elf.ELFDATA2LSB, elf.EM_386},
		"arm64": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_AARCH64}, "arm": {elf.ELFCLASS32, elf.ELFDATA2LSB, elf.EM_ARM},
		"riscv64": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_RISCV}, "loong64": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_LOONGARCH},
		"ppc64le": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_PPC64}, "s390x": {elf.ELFCLASS64, elf.ELFDATA2MSB, elf.EM_S390},
		"mips64le": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_MIPS}, "mips64": {elf.ELFCLASS64, elf.ELFDATA2MSB, elf.EM_MIPS},
	}[arch]
	return m, ok
}

// emulated says what is missing for an emulator of the platform, or nothing:
// an enabled entry of binfmt_misc whose magic is that of the platform's
// programs, and that is opened in advance (flag F), since the emulator is not
// in the image.
func (t target) emulated(dir string) error {
	install := fmt.Sprintf("install an emulator (Debian: apt install qemu-user-static binfmt-support; or docker run --privileged tonistiigi/binfmt --install %s)", t.arch)
	want, known := machineOf(t.arch)
	if !known {
		return errors.New("no emulator is known for it")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) == 0 {
		return fmt.Errorf("%s is not mounted; mount it and %s", dir, install)
	}
	why := fmt.Errorf("%s has no entry for it; %s", dir, install)
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name.Name()))
		if err != nil {
			continue // register can only be written
		}
		e := parseBinfmt(string(data))
		if !want.starts(e.magic) {
			continue
		}
		switch {
		case !e.enabled:
			why = fmt.Errorf("its emulator %s is disabled in %s", name.Name(), dir)
		case !strings.Contains(e.flags, "F"):
			why = fmt.Errorf("its emulator %s lacks the flag F, so that it is not found inside of an image; register it again with F", name.Name())
		default:
			return nil
		}
	}
	return why
}

// binfmt is an entry of binfmt_misc (binfmt-misc.rst).
type binfmt struct {
	enabled bool
	flags   string
	magic   []byte
}

func parseBinfmt(text string) binfmt {
	var e binfmt
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			e.enabled = true
		case "flags:":
			e.flags = value
		case "magic":
			e.magic, _ = hex.DecodeString(value) // an odd one is not ELF's
		}
	}
	return e
}

// starts tells whether magic is the head of the machine's programs.
func (m machine) starts(magic []byte) bool {
	if len(magic) < 20 || string(magic[:4]) != elf.ELFMAG || elf.Class(magic[4]) != m.class || elf.Data(magic[5]) != m.data {
		return false
	}
	lo, hi := magic[18], magic[19]
	if m.data == elf.ELFDATA2MSB {
		lo, hi = hi, lo
	}
	return elf.Machine(uint16(hi)<<8|uint16(lo)) == m.code
}
