package attacks

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inside are the attacks as they run in the container; nil means that it worked.
func inside() map[string]func([]string) error {
	return map[string]func([]string) error{
		"syscall": attackSyscall, "clone3": attackClone3, "newuser": attackNewUser, "mount": attackMount,
		"handle": attackHandle, "key": attackKey, "dmesg": attackDmesg, "unmount": attackUnmount,
		"freshproc": attackFreshProc, "mountproc": func([]string) error { return mountProc() },
		"ifdown": func([]string) error { return setLoopback(false) }, "clock": attackClock, "priority": func([]string) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -10) }, "run": attackRun,
		"cat": attackCat, "openwrite": attackOpenWrite, "list": attackList, "disk": attackDisk, "release": attackRelease,
		"chroot": attackChroot, "kill": attackKill, "killname": attackKillName, "pids": attackPids,
		"hostname": func(a []string) error { return unix.Sethostname([]byte(a[0])) }, "shm": attackShm, "mq": attackMQ,
		"dial": attackDial, "root": attackRoot, "sleep": attackSleep, "fchmod": func([]string) error { return unix.Fchmod(0, 0) },
		"tiocsti": attackTIOCSTI, "procat": attackProcAt, "device": attackDevice, "memory": attackMemory,
		"fork": attackFork, "fill": attackFill, "flood": attackFlood, "fds": attackFDs, "writeat": attackWriteAt,
		"helper": attackHelper, "exe": attackExe, "setgroups": attackGroups, "write": attackWrite,
		"unpack": attackUnpack, "serve": attackServe, "threads": attackThreads,
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
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", args[0], 0)
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
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return errors.New("the file is empty")
	}
	fmt.Printf("%.65536s\n", data)
	return nil
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
func attackKillName(args []string) error {
	pid, err := pidOf(args[0])
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
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
		pid, missing := pidOf("naru-exec")
		if missing == nil {
			// The address may be wrong: EFAULT comes after the permission.
			err = readMemory(pid)
			// The name changes at execve: what still has it was read before.
			if _, gone := pidOf("naru-exec"); gone == nil && (err == nil || errors.Is(err, unix.EFAULT)) {
				return nil
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
