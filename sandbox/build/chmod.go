package build

import (
	"fmt"
	"os"
	"strconv"

	mode "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"
)

// modeChange is a --chmod: a mode, or what to change of the one a file has. Nil
// changes nothing.
type modeChange struct {
	octal    uint32
	symbolic *mode.Set // nil: octal
}

// parseMode reads --chmod. Symbolic modes are read by the library that BuildKit
// uses: chmod(1) leaves enough open to make two readers differ.
func parseMode(text string) (*modeChange, error) {
	if text == "" {
		return nil, nil
	}
	if n, err := strconv.ParseUint(text, 8, 32); err == nil && n <= 0o7777 {
		return &modeChange{octal: uint32(n)}, nil
	}
	if set, err := mode.ParseWithUmask(text, 0); err == nil {
		return &modeChange{symbolic: &set}, nil
	}
	return nil, fmt.Errorf("--chmod=%s: neither an octal mode from 0 to 7777 nor a symbolic one such as u=rwX,go=rX", text)
}

// apply returns the permissions of a file that has this mode, type included.
func (c *modeChange) apply(m uint32) uint32 {
	switch {
	case c == nil:
		return m & 0o7777
	case c.symbolic == nil:
		return c.octal
	}
	in := os.FileMode(m & 0o777)
	for _, bit := range specialBits {
		if m&bit.unix != 0 {
			in |= bit.fs
		}
	}
	if m&unix.S_IFMT == unix.S_IFDIR {
		in |= os.ModeDir // X asks for it
	}
	changed := c.symbolic.Apply(in)
	out := uint32(changed.Perm())
	for _, bit := range specialBits {
		if changed&bit.fs != 0 {
			out |= bit.unix
		}
	}
	return out
}

// created returns the permissions of a directory that a destination needs and
// nobody copied. As in BuildKit, symbolic modes do not count for it.
func (c *modeChange) created() uint32 {
	if c == nil || c.symbolic != nil {
		return dirMode
	}
	return c.octal & 0o777
}

var specialBits = [...]struct {
	unix uint32
	fs   os.FileMode
}{{unix.S_ISUID, os.ModeSetuid}, {unix.S_ISGID, os.ModeSetgid}, {unix.S_ISVTX, os.ModeSticky}}
