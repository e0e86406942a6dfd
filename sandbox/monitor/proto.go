package monitor

import (
	"syscall"
	"unsafe"

	"naru/sandbox/runtime/launch/step"
)

// Control is the descriptor on which a monitor or exec helper finds its creator.
const Control = 3

// Personalities of the tiny program, told by argv[0].
const (
	ArgMonitor = "naru-monitor"
	ArgResume  = "naru-resume" // a keeper, in the place of its monitor that was killed
	ArgExec    = "naru-exec"
)

// Requests: the first byte of a SOCK_SEQPACKET message on the control socket or
// on monitor.sock. A client may send all but the first four. What a monitor does not
// know it answers with ReplyErrno and ENOSYS: agents and monitors of different
// versions meet, as a container outlives the upgrade of its agent.
const (
	OpUserNS = 'U' // + two id maps, see EncodeMaps → ReplyFD with the namespace
	OpLaunch = 'L' // with descriptors: a memfd with a Launch, then those it refers to → ReplyCloned, ReplyReady or ReplyFailed
	OpAdopt  = 'A' // like OpLaunch, for a container whose monitor died → ReplyOK
	OpCommit = 'C' // the creator's records are durable; no reply, but ReplyOK from a solo one, which ends
	OpGo     = 'g' // the init stopped for its creator (ReplyHalt) and may go on; no reply
	OpStart  = 'S' // → ReplyOK or ReplyFailed, once execve has happened
	OpStatus = '?' // → ReplyStatus + state byte + u32 pid, then u32 Protocol, u64 bytes that were not logged, u32 OOM kills
	OpSignal = 'K' // + u32 → ReplyOK or ReplyErrno
	OpGetFD  = 'G' // → ReplyFD with the init's pidfd and the read ends of its output
	OpRotate = 'O' // begin a new log file → ReplyOK
	OpResize = 'W' // + u16 rows + u16 columns: the terminal's window → ReplyOK, none once attached
	OpExit   = 'E' // → ReplyExited, when the container has ended and its record is on disk
	OpAttach = 'T' // + u8 flags + u32 milliseconds of patience → ReplyOK, then ReplyData or ReplyAt until ReplyExited or ReplyDropped
	OpInput  = 'i' // + bytes for the standard input; no reply
	OpEOF    = 'e' // the standard input ends; no reply
)

// Protocol is the version of the messages that a monitor knows: 0 is one that
// says no version in ReplyStatus, 2 came with OpRotate to OpEOF, 3 with AttachAt.
const Protocol = 3

// Flags of OpAttach.
const (
	AttachOnce = 1 // the standard input ends with this client
	AttachAt   = 2 // output comes as ReplyAt; ReplyOK + Position says where in the log that begins
)

// MaxInput is how many bytes one OpInput carries, MaxData one ReplyData.
const (
	MaxInput = 4 << 10
	MaxData  = 64 << 10
)

// Replies.
const (
	ReplyOK      = 'o'
	ReplyErrno   = '!' // + u32
	ReplyCloned  = 'c' // + u32 pid, with the pidfd: the namespaces exist, the init is at work
	ReplyHalt    = 'H' // the init has its mounts, has not pivoted, and waits for OpGo
	ReplyReady   = 'R' // the init is at its gate; from an exec helper + u32 pid, with the pidfd
	ReplyFailed  = 'F' // + u32 errno + name of the step
	ReplyStatus  = 's'
	ReplyFD      = 'f'
	ReplyExited  = 'X' // + u32 wait status: from an exec helper, and to who asked for OpExit or OpAttach
	ReplyData    = 'd' // + u8 stream + bytes
	ReplyAt      = 'D' // + u8 stream + Position behind the bytes + bytes: who loses the connection finds the rest in the log
	ReplyDropped = 'x' // the client took nothing for too long; what comes without it is a monitor that was killed
)

// PositionSize is the length of an encoded Position.
const PositionSize = 16

// Position is a place in the log: the inode of one of its files, and an offset, which
// is the end of a chunk.
type Position struct{ Inode, Offset uint64 }

// Put fills b[:PositionSize].
func (p Position) Put(b []byte) {
	for i := range 8 {
		b[i], b[8+i] = byte(p.Inode>>(8*i)), byte(p.Offset>>(8*i))
	}
}

// PositionOf reads what Put wrote.
func PositionOf(b []byte) Position {
	d := step.Decoder{Buf: b}
	return Position{d.U64(), d.U64()}
}

// State bytes of ReplyStatus.
const (
	StateCreated = 'c'
	StateRunning = 'r'
)

// Names of files that the monitor writes: in the state directory and in the
// container's directory on disk.
const (
	FileStarted = "started"
	FileExit    = "exit.json"
	FileLog     = "log"
	FileLogOld  = "log.1" // then log.2 and so on, the greater the older
	FileStdin   = "stdin" // a fifo, as long as the standard input has not ended
)

// MaxFDs is how many descriptors one message carries (SCM_MAX_FD, unix(7)).
const MaxFDs = 253

// None stands for a descriptor that is not there.
const None = -1

// Launch is what a monitor or exec helper needs to know. Descriptors are indexes
// into those that came with the message, or None.
type Launch struct {
	Name       string       // for ps(1)
	Flags      uint64       // clone(2) flags: namespaces
	Cgroup     int          // cgroup2 directory to be born in
	Attach     []int        // cgroup.procs files of v1 hierarchies
	UIDMap     string       // for /proc/pid/uid_map; empty: no user namespace
	GIDMap     string       //
	Detached   bool         // may wait for Start without creator
	Started    bool         // adopted: it runs already
	Passing    bool         // its directory goes with its end: log and exit.json are not synced
	Solo       bool         // ends at OpCommit, and leaves its child to the creator's parent (a subreaper, prctl(2))
	Terminal   bool         // the init brings the master of its terminal, see TerminalFD
	LogMax     uint64       // bytes of all log files together
	LogFiles   uint32       // how many log files; 0: two
	Callback                // what to run, and when
	Dir        int          // directory of log and exit.json
	State      int          // state directory
	Listen     int          // monitor.sock, listening
	Lock       int          // held open as long as the monitor lives, see flock(2)
	Out        [2]int       // read ends of stdout and stderr
	Live       int          // a socket whose other end is attached from the start, with livePatience
	Kill       int          // cgroup.kill
	OOM        int          // memory.oom_control or memory.events
	Pidfd      int          // OpAdopt: the init
	In         int          // write end of the standard input
	CgroupRoot int          // root of the cgroup2 hierarchy, for Callback.Group
	OOMEvent   int          // eventfd(2) of memory.oom_control (v1)
	Hold       [2]int       // descriptors of the callback's program
	Stdio      [3]int       // exec: handed to the process
	Before     step.Program // run in the helper itself before it clones: namespaces to join, which its child inherits
	Program    step.Program
	before     step.Code
	Code       step.Code // the program as it arrived
	record     []byte    // the mapping in which Code lies
	file       int       // the memfd behind it
	head       int       // its length without Code
	memory     *memory   // shared with that file
}

// TerminalFD is the descriptor at which a process that has reported to be ready
// holds the master of its terminal, for its parent to take by pidfd_getfd(2).
const TerminalFD = 900

// Encode returns the record.
func (l *Launch) Encode() []byte {
	e := &step.Encoder{Buf: make([]byte, memorySize, 64<<10)} // what a container with the default mounts takes
	e.String(l.Name)
	e.U64(l.Flags)
	e.String(l.UIDMap)
	e.String(l.GIDMap)
	e.U32(flag(l.Detached) | flag(l.Started)<<1 | flag(l.Solo)<<2 | flag(l.Passing)<<3)
	e.U64(l.LogMax)
	e.U32(l.LogFiles)
	e.U32(flag(l.Terminal))
	l.Callback.encode(e)
	for _, p := range l.indexes() {
		e.U32(uint32(*p))
	}
	before := &step.Encoder{}
	l.Before.Encode(before)
	e.Bytes(before.Buf)
	l.Program.Encode(e)
	return e.Buf
}

func decodeLaunch(b []byte) (*Launch, bool) {
	if len(b) < memorySize {
		return nil, false
	}
	d := &step.Decoder{Buf: b[memorySize:]}
	l := &Launch{Name: d.String(), Flags: d.U64(), UIDMap: d.String(), GIDMap: d.String()}
	bits := d.U32()
	l.Detached, l.Started, l.Solo, l.LogMax = bits&1 != 0, bits&2 != 0, bits&4 != 0, d.U64()
	l.Passing = bits&8 != 0
	l.LogFiles, l.Terminal = d.U32(), d.U32() != 0
	l.Callback.decode(d)
	for _, p := range l.indexes() {
		*p = int(int32(d.U32()))
	}
	l.before = d.Bytes()
	l.Code = d.Buf
	l.head = len(b) - len(l.Code)
	return l, !d.Bad
}

// indexes lists the fields that name a descriptor, in wire order.
func (l *Launch) indexes() []*int {
	return []*int{&l.Cgroup, &l.Dir, &l.State, &l.Listen, &l.Lock, &l.Out[0], &l.Out[1], &l.Live,
		&l.Kill, &l.OOM, &l.Pidfd, &l.Stdio[0], &l.Stdio[1], &l.Stdio[2], &l.In, &l.CgroupRoot, &l.OOMEvent, &l.Hold[0], &l.Hold[1]}
}

// NewLaunch returns a Launch without descriptors.
func NewLaunch() *Launch {
	l := &Launch{}
	for _, p := range l.indexes() {
		*p = None
	}
	return l
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// EncodeMaps is the body of OpUserNS.
func EncodeMaps(uid, gid string) []byte {
	e := &step.Encoder{Buf: []byte{OpUserNS}}
	e.String(uid)
	e.String(gid)
	return e.Buf
}

// send writes one message; a peer that is gone or does not read is its own loss.
func send(fd int, msg []byte, fds ...int) {
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	for {
		err := syscall.Sendmsg(fd, msg, oob, nil, syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return
		}
	}
}

func reply32(fd int, op byte, v uint32, text string) {
	e := step.Encoder{Buf: []byte{op}}
	e.U32(v)
	e.Buf = append(e.Buf, text...)
	send(fd, e.Buf)
}

// receive reads one message into buf; n is 0 at the end of the connection.
func receive(fd int, buf []byte, flags int) (n int, fds []int, err error) {
	oob := make([]byte, syscall.CmsgSpace(4*MaxFDs))
	n, oobn, _, _, err := syscall.Recvmsg(fd, buf, oob, flags|syscall.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, nil, err
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
	for i := range msgs {
		if f, e := syscall.ParseUnixRights(&msgs[i]); e == nil {
			fds = append(fds, f...)
		}
	}
	return n, fds, err
}

// readLaunch maps the record in a memfd.
func readLaunch(fd int) (*Launch, bool) {
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil {
		return nil, false
	}
	// Private, as the kernel may write to an argument of capset(2).
	buf, err := syscall.Mmap(fd, 0, int(st.Size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE)
	if err != nil {
		return nil, false
	}
	l, ok := decodeLaunch(buf)
	if !ok {
		return nil, false
	}
	l.record, l.file = buf, fd
	shared, err := syscall.Mmap(fd, 0, memorySize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, false
	}
	l.memory = (*memory)(unsafe.Pointer(unsafe.SliceData(shared)))
	return l, true
}

type pollFD struct {
	fd      int32
	events  int16
	revents int16
}

// Poll events, poll(2).
const (
	pollIn  = 1
	pollPri = 2
	pollOut = 4
	pollHup = 16
	pollEnd = 8 | 16 | 32 // ERR, HUP, NVAL
)

// poll waits without limit, or ms milliseconds if that is not negative.
func poll(fds []pollFD, ms int64) {
	var ts *syscall.Timespec
	if ms >= 0 {
		t := syscall.NsecToTimespec(ms * 1e6)
		ts = &t
	}
	syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(ts)), 0, 0, 0)
}

func openAt(dir int, name string, flags int, perm uint32) (int, error) {
	return syscall.Openat(dir, name, flags|syscall.O_CLOEXEC, perm)
}

// writeAll writes to a descriptor that does not block for long: a procfs, cgroup or gate file.
func writeAll(fd int, s string) error {
	_, err := syscall.Write(fd, []byte(s))
	return err
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}
