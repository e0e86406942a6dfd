package sandbox

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/build"
	"naru/sandbox/internal/diskuse"
)

// limitError is why a step was ended from outside.
type limitError struct {
	reason build.Reason
	detail string
}

func (e *limitError) Error() string { return e.detail }

// diskWatch bounds what one step writes. Asking how much of the file system is free
// costs a system call and is done often; what the step itself has written is measured
// only when the whole has shrunk by more than the step may write, and now and then, as
// others may be freeing meanwhile.
type diskWatch struct {
	step  build.Step
	limit diskuse.Use
	pids  func() ([]int, error) // of the step
	begin room
	base  diskuse.Use // of cache mounts: what was in them
}

// room is what a file system has free.
type room struct{ bytes, inodes, size int64 }

const (
	diskInterval = 100 * time.Millisecond
	// measureEvery bounds how much of a processor measuring takes.
	measureEvery = 5
	measureLeast = time.Second
	// reserveMost is kept free on the disk, or a hundredth of it if that is less:
	// whatever a build writes, the machine's databases can go on.
	reserveMost = 1 << 30
)

func roomOf(dir string) (room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return room{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	r := room{bytes: int64(st.Bavail) * st.Bsize, inodes: int64(st.Ffree), size: int64(st.Blocks) * st.Bsize}
	if st.Files == 0 { // btrfs counts none
		r.inodes = -1
	}
	return r, nil
}

func (r room) reserve() int64 { return min(reserveMost, r.size/100) }

// watch calls over, once, when the step must be ended, and returns when ctx ends.
func (d *diskWatch) watch(ctx context.Context, over func(error)) {
	d.base = d.caches(ctx)
	tick := time.NewTicker(diskInterval)
	defer tick.Stop()
	next := time.Now().Add(measureLeast)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := roomOf(d.step.Upper)
		if err != nil {
			continue
		}
		if now.bytes < now.reserve() {
			over(&limitError{build.ReasonDisk, fmt.Sprintf("the disk has only %s left, which are kept free", mebibytes(now.bytes))})
			return
		}
		if d.limit == (diskuse.Use{}) {
			continue
		}
		shrunk := diskuse.Use{Bytes: d.begin.bytes - now.bytes, Inodes: d.begin.inodes - now.inodes}
		if !shrunk.Over(d.limit) && time.Now().Before(next) {
			continue
		}
		start := time.Now()
		sum, err := d.measure(ctx)
		if err != nil {
			over(err)
			return
		}
		// The rest of what was shrunk is others': it counts no more.
		d.begin.bytes, d.begin.inodes = now.bytes+sum.Bytes, now.inodes+sum.Inodes
		next = time.Now().Add(max(measureLeast, measureEvery*time.Since(start)))
	}
}

// measure returns what the step has written, or why that is too much.
func (d *diskWatch) measure(ctx context.Context) (sum diskuse.Use, _ error) {
	for _, dir := range d.uppers() {
		use, err := diskuse.Of(ctx, dir, d.limit)
		if err != nil && ctx.Err() == nil {
			return sum, &limitError{build.ReasonInodes, "directories are nested more deeply than any path can say"}
		}
		sum = sum.Add(use)
	}
	caches := d.caches(ctx)
	sum = sum.Add(diskuse.Use{Bytes: max(0, caches.Bytes-d.base.Bytes), Inodes: max(0, caches.Inodes-d.base.Inodes)})
	sum = sum.Add(d.deleted())
	switch {
	case d.limit.Bytes > 0 && sum.Bytes > d.limit.Bytes:
		return sum, &limitError{build.ReasonDisk, fmt.Sprintf("disk limit: the step has written more than the %s that the build may still write", mebibytes(d.limit.Bytes))}
	case d.limit.Inodes > 0 && sum.Inodes > d.limit.Inodes:
		return sum, &limitError{build.ReasonInodes, fmt.Sprintf("inode limit: the step has made more than the %d files that the build may still make", d.limit.Inodes)}
	}
	return sum, nil
}

// uppers are the directories that only this step writes to.
func (d *diskWatch) uppers() []string {
	dirs := []string{d.step.Upper}
	for _, m := range d.step.Mounts {
		if m.Stack != nil && m.Stack.Upper != "" {
			dirs = append(dirs, m.Stack.Upper)
		}
	}
	return dirs
}

// caches is what the step's cache mounts hold.
func (d *diskWatch) caches(ctx context.Context) (sum diskuse.Use) {
	if d.limit == (diskuse.Use{}) {
		return sum
	}
	for _, m := range d.step.Mounts {
		if m.Dir == nil || m.ReadOnly {
			continue
		}
		if use, err := diskuse.Of(ctx, "/proc/self/fd/"+strconv.Itoa(int(m.Dir.Fd())), diskuse.Use{}); err == nil {
			sum = sum.Add(use)
		}
	}
	return sum
}

// deleted is what files take that have no name any more and that a process of the
// step holds open.
func (d *diskWatch) deleted() (sum diskuse.Use) {
	pids, err := d.pids()
	if err != nil {
		return sum
	}
	seen := map[[2]uint64]bool{}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		names, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, n := range names {
			var st unix.Stat_t
			var fs unix.Statfs_t
			path := dir + "/" + n.Name()
			if unix.Stat(path, &st) != nil || st.Nlink > 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue
			}
			if unix.Statfs(path, &fs) != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.HUGETLBFS_MAGIC {
				continue // memory
			}
			id := [2]uint64{uint64(st.Dev), st.Ino}
			if !seen[id] {
				seen[id] = true
				sum = sum.Add(diskuse.Use{Bytes: st.Blocks * 512, Inodes: 1})
			}
		}
	}
	return sum
}
