package attacks

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inside are the attacks as they run in the container; nil means that it worked.
func inside() map[string]func([]string) error {
	return map[string]func([]string) error{
		"syscall": attackSyscall, "clone3": attackClone3, "newuser": attackNewUser, "mount": attackMount,
		"handle": attackHandle, "key": attackKey, "dmesg": attackDmesg, "unmount": attackUnmount,
		"freshproc": attackFreshProc, "mountproc": func([]string) error { return mountProc() },
		"ifdown": func([]string) error { return setLoopback(false) }, "clock": attackClock, "i386": attackI386, "x32": attackX32, "priority": func([]string) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -10) }, "run": attackRun,
		"cat": attackCat, "openwrite": attackOpenWrite, "list": attackList, "disk": attackDisk, "release": attackRelease,
		"chroot": attackChroot, "kill": attackKill, "killname": attackKillName, "pids": attackPids,
		"hostname": func(a []string) error { return unix.Sethostname([]byte(a[0])) }, "shm": attackShm, "mq": attackMQ,
		"dial": attackDial, "root": attackRoot, "sleep": attackSleep, "fchmod": func([]string) error { return unix.Fchmod(0, 0) },
		"tiocsti": attackTIOCSTI, "procat": attackProcAt, "device": attackDevice, "memory": attackMemory,
		"fork": attackFork, "fill": attackFill, "files": attackFiles, "flood": attackFlood, "fds": attackFDs, "writeat": attackWriteAt,
		"helper": attackHelper, "exe": attackExe, "setgroups": attackGroups, "write": attackWrite,
		"unpack": attackUnpack, "walk": attackWalk, "engine": attackEngine, "serve": attackServe, "threads": attackThreads,
	}
}

// attackSyscall makes any call; EPERM is what the filter and missing capabilities
// answer, everything else comes from behind them. "s:" marks a string.
func attackSyscall(args []string) error {
	var word [7]uintptr
	var keep [][]byte
	for i, a := range args {
		if text, ok := strings.CutPrefix(a, "s:"); ok {
			keep = append(keep, append([]byte(text), 0))
			word[i] = uintptr(unsafe.Pointer(&keep[len(keep)-1][0]))
			continue
		}
		n, err := strconv.ParseInt(a, 0, 64)
		if err != nil {
			return err
		}
		word[i] = uintptr(n)
	}
	runtime.LockOSThread()
	_, _, errno := unix.RawSyscall6(word[0], word[1], word[2], word[3], word[4], word[5], word[6])
	runtime.KeepAlive(keep)
	if errno == unix.EPERM {
		return errno
	}
	fmt.Println("the kernel's answer:", errno)
	return nil
}

// attackClone3 asks without arguments: EINVAL would be the kernel's answer.
func attackClone3([]string) error {
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	if errno == unix.EPERM || errno == unix.ENOSYS {
		return errno
	}
	return nil
}

// attackNewUser starts a process in a user namespace of its own by clone(2) or unshare(2).
func attackNewUser(args []string) error {
	if args[0] == "unshare" {
		runtime.LockOSThread()
		// A process with threads is answered EINVAL for CLONE_NEWUSER, but by the kernel.
		if err := unix.Unshare(unix.CLONE_NEWUSER); !errors.Is(err, unix.EINVAL) {
			return err
		}
		return nil
	}
	cmd := exec.Command("/attack", "attack", "sleep", "0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	return cmd.Start()
}

func attackMount(args []string) error {
	if err := unix.Mount("none", "/tmp", args[0], 0, ""); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/tmp", &st); err != nil {
		return err
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return errors.New("nothing was mounted")
	}
	return nil
}

// attackHandle opens a file of the host by its handle, as shocker did.
func attackHandle(args []string) error {
	kind, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	handle, err := hex.DecodeString(args[1])
	if err != nil {
		return err
	}
	dir, err := unix.Open("/vol", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(int32(kind), handle), unix.O_RDONLY)
	if err != nil {
		return err
	}
	return printAll(os.NewFile(uintptr(fd), "handle"))
}

func printAll(r io.Reader) error {
	_, err := io.Copy(os.Stdout, io.LimitReader(r, 1<<20))
	return err
}

// attackKey reads a key of the user's keyring, which all containers of a user share.
func attackKey(args []string) error {
	ring, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	id, err := unix.KeyctlSearch(ring, "user", args[0], 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 256)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0)
	if err != nil {
		return err
	}
	fmt.Println(string(buf[:n]))
	return nil
}

// attackDmesg reads the kernel's log.
func attackDmesg([]string) error {
	lines, err := kernelMessages()
	if err == nil {
		fmt.Println(lines)
	}
	return err
}

// kernelMessages are those that these tests wrote.
func kernelMessages() (string, error) {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return "", err
	}
	var ours strings.Builder
	for line := range strings.Lines(string(buf[:n])) {
		if strings.Contains(line, "naru attack test") {
			ours.WriteString(line)
		}
	}
	return ours.String(), nil
}

// attackUnmount takes a mask away and reads what is below.
func attackUnmount(args []string) error {
	if err := unix.Unmount(args[0], unix.MNT_DETACH); err != nil {
		return err
	}
	return attackCat(args)
}

// attackFreshProc mounts a procfs without masks in namespaces of its own.
func attackFreshProc([]string) error {
	cmd := exec.Command("/attack", "attack", "mountproc")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}} // id 0 would need CAP_SETFCAP
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID, UidMappings: ids, GidMappings: ids,
		Credential: &syscall.Credential{NoSetGroups: true}}
	err := cmd.Run()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == worked {
		return nil
	}
	return fmt.Errorf("in a user namespace: %w", err)
}

func mountProc() error {
	return unix.Mount("proc", "/tmp", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// setLoopback switches lo on or off, netdevice(7).
func setLoopback(up bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if up {
		request.SetUint16(unix.IFF_UP)
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// attackClock asks for a tick length that is refused to those who may set one.
func attackClock([]string) error {
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 1})
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// attackRun goes on in another program of the image, which has more privileges.
func attackRun(args []string) error {
	return unix.Exec(args[0], append([]string{args[0], "attack"}, args[1:]...), os.Environ())
}

// attackCat reads a file, or a link's target; an empty one is what masks leave.
func attackCat(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<16)) // some files of /proc have no end
	if err == nil && len(data) == 0 {
		err = errors.New("the file is empty")
	}
	if err == nil {
		fmt.Printf("%s\n", data)
	}
	return err
}

func attackList(args []string) error {
	names, err := os.ReadDir(args[0])
	if err == nil && len(names) == 0 {
		err = errors.New("the directory is empty")
	}
	return err
}

// attackOpenWrite opens without writing: the permission is proof enough.
func attackOpenWrite(args []string) error {
	fd, err := unix.Open(args[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func attackWrite(args []string) (err error) {
	for _, path := range args[1:] {
		if err = os.WriteFile(path, []byte(args[0]), 0); err == nil {
			return nil
		}
	}
	return err
}

// attackDisk makes a node for a block device and reads it.
func attackDisk(args []string) error {
	minor, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if err := unix.Mknod("/dev/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(minor)))); err != nil {
		return err
	}
	return attackDevice([]string{"/dev/disk"})
}

func attackDevice(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	buf := make([]byte, 512)
	if _, err := io.ReadFull(f, buf); err != nil {
		return err
	}
	fmt.Printf("%s\n", buf[:64])
	return nil
}

// attackI386 makes getpid(2) by the gate of 32-bit programs, where numbers mean other calls.
func attackI386([]string) error {
	code := []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3} // mov $20, %eax; int $0x80; ret
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(page, code)
	entry := unsafe.Pointer(&page[0])
	function := unsafe.Pointer(&entry)
	call := *(*func() uintptr)(unsafe.Pointer(&function))
	if got := call(); got != uintptr(os.Getpid()) {
		return fmt.Errorf("the call answered %d", got)
	}
	return nil
}

// attackX32 makes getpid(2) by a number of the x32 ABI.
func attackX32([]string) error {
	const x32 = 0x40000000
	_, _, errno := unix.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
