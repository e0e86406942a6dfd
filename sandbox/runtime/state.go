package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/sandbox/monitor"
)

// record is state.json: enough to find the container again, and to be sure that
// it is the same process.
type record struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Identity
	Cgroup     string `json:"cgroup"`
	Namespaces uint64 `json:"namespaces"` // CLONE_NEW* flags of those that are not the host's
	Mapped     bool   `json:"mapped"`     // a user namespace is among them
	LogMax     int64  `json:"log_max"`
	LogFiles   int    `json:"log_files,omitempty"`
	Terminal   bool   `json:"terminal,omitempty"`

	Foreign *foreignRecord `json:"foreign,omitempty"`
}

// Identity tells one process from every other that ever had or will have its pid.
type Identity struct {
	BootID     string `json:"boot_id"`
	Pid        int    `json:"pid"`
	StartTime  string `json:"start_time"`  // field 22 of /proc/<pid>/stat
	PidfdInode uint64 `json:"pidfd_inode"` // unique per process since Linux 6.9
}

const recordVersion = 1

func (r record) save(stateDir string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	// A power cut ends the container with the record, so no disk is waited for.
	if err := atomicfile.Replace(filepath.Join(stateDir, fileState), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save container state: %w", err)
	}
	return nil
}

func loadRecord(stateDir string) (r record, err error) {
	b, err := os.ReadFile(filepath.Join(stateDir, fileState))
	if err != nil {
		return r, err
	}
	err = json.Unmarshal(b, &r)
	if errors.As(err, new(*json.SyntaxError)) { // cut off: written in an earlier boot, should the directory be on a disk
		return r, fmt.Errorf("read container state: %w", fs.ErrNotExist)
	}
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrState, err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("%w: version %d, this program knows %d", ErrState, r.Version, recordVersion)
	}
	return r, nil
}

// identify fills in what tells this process from a later one with its pid.
func (r *Identity) identify(pid, pidfd int) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(pidfd, &st); err != nil {
		return fmt.Errorf("stat pidfd: %w", err)
	}
	r.Pid, r.BootID, r.StartTime, r.PidfdInode = pid, boot, start, st.Ino
	return nil
}

// Find returns a pidfd of the process, or ErrGone. It may be a zombie.
func (r Identity) Find() (int, error) {
	boot, err := bootID()
	if err != nil {
		return -1, err
	}
	if boot != r.BootID {
		return -1, ErrGone
	}
	fd, err := unix.PidfdOpen(r.Pid, 0)
	// Older kernels (seen on 6.1) say EINVAL where it is gone and its number is still that
	// of a session or group.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, ErrGone
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	now := r
	if err := now.identify(r.Pid, fd); err != nil || now != r {
		unix.Close(fd)
		return -1, ErrGone
	}
	return fd, nil
}

// bootID does not change while a process lives.
var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
})

// startTime is field 22 of /proc/<pid>/stat, in clock ticks since boot.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return "", errors.New("read process start time: short stat line")
	}
	return f[19], nil
}

// exitRecord is exit.json as the monitor writes it.
type exitRecord struct {
	Code  int   `json:"code"`
	OOM   bool  `json:"oom"`
	Known bool  `json:"known"`
	Nanos int64 `json:"nanos"`

	OOMKills int   `json:"oom_kills,omitempty"`
	Lost     int64 `json:"lost,omitempty"`
}

// loadExit reads exit.json; ok is false when there is none yet.
func loadExit(dir string) (e Exit, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, monitor.FileExit))
	if errors.Is(err, fs.ErrNotExist) {
		return e, false, nil
	}
	var r exitRecord
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return e, false, fmt.Errorf("read exit record: %w", err)
	}
	return Exit{Code: r.Code, OOM: r.OOM, Known: r.Known, At: time.Unix(0, r.Nanos), OOMKills: r.OOMKills, Lost: r.Lost}, true, nil
}

func saveExit(dir string, e Exit) error {
	b, err := json.Marshal(exitRecord{e.Code, e.OOM, e.Known, e.At.UnixNano(), e.OOMKills, e.Lost})
	if err != nil {
		return err
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, monitor.FileExit), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save exit record: %w", err)
	}
	return nil
}
