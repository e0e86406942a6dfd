package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// setLimits sets resource limits and the oom score of a process that waits at
// its gate. Raising either needs CAP_SYS_RESOURCE on the host, which an agent
// inside a container may lack: then the limit is clamped to what is possible.
func setLimits(pid int, p *specs.Process) error {
	for _, r := range p.Rlimits {
		if err := setRlimit(pid, rlimits()[r.Type], unix.Rlimit{Cur: r.Soft, Max: r.Hard}); err != nil {
			return fmt.Errorf("set %s: %w", r.Type, err)
		}
	}
	if p.OOMScoreAdj == nil {
		return nil
	}
	path := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	err := os.WriteFile(path, []byte(strconv.Itoa(*p.OOMScoreAdj)), 0)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("set oom score: %w", err)
	}
	return nil
}

func setRlimit(pid, kind int, want unix.Rlimit) error {
	err := unix.Prlimit(pid, kind, &want, nil)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	var have unix.Rlimit
	if err := unix.Prlimit(pid, kind, nil, &have); err != nil {
		return err
	}
	want.Max = min(want.Max, have.Max)
	want.Cur = min(want.Cur, want.Max)
	return unix.Prlimit(pid, kind, &want, nil)
}
