package cgroup

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programXattr records, on the unified directory, the kernel's numbers of the device
// programs that may be attached there: one, or two while one replaces the other.
const programXattr = "trusted.naru.devices"

// attachDevices makes the rules the device policy of the directory, in place of the
// one it attached earlier. Programs of others, there or above, stay and must agree
// too (BPF_F_ALLOW_MULTI).
//
// To replace a program its descriptor is needed, and the process that had it is
// gone. So its number is kept beside it: written before anything is attached, it is
// right after a crash at any point, and it vanishes with the group. What is attached
// is never asked for: kernels 6.17 to 7.1 write past the buffer of BPF_PROG_QUERY.
func attachDevices(dir string, rules []deviceRule) error {
	prog, id, err := sharedProgram(filepath.Dir(dir), deviceProgram(rules))
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer unix.Close(prog)
	cg, err := openFile(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(cg)
	old, err := programsOf(dir)
	if err != nil {
		return err
	}
	if err := recordPrograms(dir, append(old, id)); err != nil {
		return err
	}
	for i := len(old) - 1; i >= 0; i-- {
		was, err := programByID(old[i])
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open the program to replace: %w", err)
		}
		err = attach(cg, prog, unix.BPF_F_ALLOW_MULTI|unix.BPF_F_REPLACE, was)
		unix.Close(was)
		if err == nil {
			return recordPrograms(dir, []uint32{id})
		}
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("replace program: %w", err)
		}
	}
	if err := attach(cg, prog, unix.BPF_F_ALLOW_MULTI, 0); err != nil {
		return fmt.Errorf("attach program: %w", err)
	}
	return nil
}

func attach(cgroup, prog, flags, replace int) error {
	attr := struct{ target, prog, kind, flags, replace uint32 }{uint32(cgroup), uint32(prog), unix.BPF_CGROUP_DEVICE, uint32(flags), uint32(replace)}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil // close-on-exec by itself (bpf(2))
}

// sharedXattr, on the parent of groups, names the device program that the last of
// them got: "<number> <tag> <hash of the code>".
const sharedXattr = "trusted.naru.program"

// sharedProgram returns a program of this code and its number. Verifying one takes
// 0.2 ms, and containers side by side mostly have the same rules: while one of them
// lives, so does its program. A number that the kernel gave to another one meanwhile
// is told by the tag, a hash of the instructions as the kernel has them. Only a parent
// of ours is written to.
func sharedProgram(parent string, code []byte) (prog int, id uint32, err error) {
	hash := fmt.Sprintf("%x", sha256.Sum256(code))
	if prog, id, err := loaded().get(hash); err == nil {
		return prog, id, nil
	}
	var buf [256]byte
	if n, err := unix.Getxattr(parent, sharedXattr, buf[:]); err == nil {
		if f := strings.Fields(string(buf[:n])); len(f) == 3 && f[2] == hash {
			was, _ := strconv.ParseUint(f[0], 10, 32)
			if prog, err := programByID(uint32(was)); err == nil {
				if info, err := infoOf(prog); err == nil && info.kind == unix.BPF_PROG_TYPE_CGROUP_DEVICE && fmt.Sprintf("%x", info.tag) == f[1] {
					return prog, info.id, nil
				}
				unix.Close(prog)
			}
		}
	}
	if prog, err = loadBPF(code); err != nil {
		return -1, 0, err
	}
	info, err := infoOf(prog)
	if err != nil {
		unix.Close(prog)
		return -1, 0, err
	}
	loaded().keep(hash, prog, info.id)
	if _, err := unix.Getxattr(parent, madeXattr, nil); err == nil {
		_ = unix.Setxattr(parent, sharedXattr, fmt.Appendf(nil, "%d %x %s", info.id, info.tag, hash), 0) // without, the next one loads its own
	}
	return prog, info.id, nil
}

// kept is the program that this process loaded last, for containers that follow each
// other and never meet.
type kept struct {
	mu   sync.Mutex
	hash string
	prog int
	id   uint32
}

var loaded = sync.OnceValue(func() *kept { return new(kept) })

func (k *kept) get(hash string) (prog int, id uint32, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hash != hash {
		return -1, 0, unix.ENOENT
	}
	prog, err = unix.FcntlInt(uintptr(k.prog), unix.F_DUPFD_CLOEXEC, 0)
	return prog, k.id, err
}

// keep takes a descriptor of its own; without one the next container loads again.
func (k *kept) keep(hash string, prog int, id uint32) {
	own, err := unix.FcntlInt(uintptr(prog), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hash != "" {
		unix.Close(k.prog)
	}
	k.hash, k.prog, k.id = hash, own, id
}

// programInfo is the begin of struct bpf_prog_info.
type programInfo struct {
	kind, id uint32
	tag      [8]byte
}

// infoOf asks about a program; the kernel fills in no more than the length it is given.
func infoOf(prog int) (info programInfo, err error) {
	attr := struct {
		fd, length uint32
		info       uint64
	}{fd: uint32(prog), length: uint32(unsafe.Sizeof(info))}
	out := new(programInfo)
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(out)
	attr.info = uint64(uintptr(unsafe.Pointer(out)))
	_, err = bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return *out, err
}

func programByID(id uint32) (int, error) {
	attr := struct{ id, next, flags uint32 }{id: id}
	return bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

func programsOf(dir string) ([]uint32, error) {
	var buf [256]byte
	n, err := unix.Getxattr(dir, programXattr, buf[:])
	if errors.Is(err, unix.ENODATA) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which program is attached: %w", err)
	}
	var ids []uint32
	for _, f := range strings.Fields(string(buf[:n])) {
		id, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read which program is attached: %w", err)
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}

func recordPrograms(dir string, ids []uint32) error {
	var text []string
	for _, id := range ids[max(0, len(ids)-8):] {
		text = append(text, strconv.FormatUint(uint64(id), 10))
	}
	if err := unix.Setxattr(dir, programXattr, []byte(strings.Join(text, " ")), 0); err != nil {
		return fmt.Errorf("record which program is attached: %w", err)
	}
	return nil
}

func loadBPF(code []byte) (int, error) {
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count   uint32
		code, license uint64
		rest          [12]uint64 // log, kernel version, flags, name…: zero
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8)}
	var pins runtime.Pinner // the kernel reads both by address
	defer pins.Unpin()
	pins.Pin(&code[0])
	pins.Pin(&license[0])
	attr.code, attr.license = uint64(uintptr(unsafe.Pointer(&code[0]))), uint64(uintptr(unsafe.Pointer(&license[0])))
	defer blockSignals()()
	return bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// blockSignals keeps every signal from the calling thread until the returned
// function runs. The verifier gives up with EAGAIN whenever one is pending, and
// the Go runtime sends its threads signals to preempt them, so that happens on any
// day; a blocked signal does not count as pending.
func blockSignals() (restore func()) {
	runtime.LockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old) // cannot fail with valid arguments
	return func() {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
		runtime.UnlockOSThread()
	}
}
