package runtime

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// logSize sums the sizes of all log files at this moment.
func logSize(t *testing.T, dir string) (size int64, files int) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, d := range list {
		if d.Name() != "log" && !strings.HasPrefix(d.Name(), "log.") {
			continue
		}
		if st, err := d.Info(); err == nil {
			size, files = size+st.Size(), files+1
		}
	}
	return size, files
}

// The bound holds at every moment, not only at the end.
func TestLogBoundHoldsAllTheTime(t *testing.T) {
	for _, files := range []int{1, 2, 5} {
		b := newBox(t, true, "sh", "-c", "seq 1 300000; echo the end")
		b.LogMax, b.LogFiles = 100<<10, files
		c := b.create(t)
		must(t, c.Start(testContext(t)))
		most, looks := int64(0), 0
		for c.State() != Stopped {
			size, _ := logSize(t, b.Dir)
			most, looks = max(most, size), looks+1
		}
		_, err := c.Wait(testContext(t))
		must(t, err)
		size, n := logSize(t, b.Dir)
		if most = max(most, size); most > b.LogMax || most < b.LogMax/2 || n > files {
			t.Errorf("%d files of at most %d: %d bytes in %d looks, the bound is %d", n, files, most, looks, b.LogMax)
		}
		if log := b.log(t); !strings.HasSuffix(log, "\n300000\nthe end\n") {
			t.Errorf("%d files: the end is missing: %q", files, log[max(0, len(log)-40):])
		}
	}
}

// A numbered writer, and a monitor that is killed again and again: no line is lost
// and none is there twice.
func TestNoByteIsLostOverKillsOfTheMonitor(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; done & seq 1 1500000 >&2; wait; exit 5")
	b.LogMax = 256 << 20
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	for range 25 {
		before, _ := logSize(t, b.Dir)
		eventually(t, "the log grows", func() bool { now, _ := logSize(t, b.Dir); return now > before })
		b.killMonitor(t)
		again, err := Open(b.StateDir, b.Dir)
		must(t, err)
		must(t, again.Close())
	}
	b.stop(t, c)
	e, err := c.Wait(testContext(t))
	if err != nil || e.Known && e.Code != 5 || !e.Known && Features().Has("exit codes by pidfd") {
		t.Errorf("%+v %v", e, err)
	}
	var out, errs bytes.Buffer
	must(t, ReadLog(testContext(t), b.Dir, LogOptions{}, &out, &errs))
	numbered(t, "stdout", &out, 0)
	numbered(t, "stderr", &errs, 1500000)
}

func numbered(t *testing.T, name string, r io.Reader, want int) {
	t.Helper()
	n := 0
	for lines := bufio.NewScanner(r); lines.Scan(); n++ {
		if lines.Text() != strconv.Itoa(n+1) {
			t.Fatalf("%s: line %d is %q", name, n+1, lines.Text())
		}
	}
	if n == 0 || want > 0 && n != want {
		t.Errorf("%s: %d lines, want %d", name, n, want)
	}
}

// On a full disk the container goes on, and the log says what it does not have.
func TestFullDisk(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "seq 1 200000; while [ ! -e /stop ]; do usleep 10000; done; echo after")
	must(t, unix.Mount("small", b.Dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(b.Dir, unix.MNT_DETACH)) })
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	eventually(t, "something is lost", func() bool {
		s, err := c.MonitorStatus(testContext(t))
		must(t, err)
		return s.Lost > 1000000
	})
	must(t, os.Truncate(filepath.Join(b.Dir, "log"), 0)) // somebody makes room
	must(t, unix.Mount("small", b.Dir, "tmpfs", unix.MS_REMOUNT, "size=1m"))
	b.stop(t, c)
	e, err := c.Wait(testContext(t))
	if err != nil || e.Code != 0 || e.Lost == 0 {
		t.Errorf("%+v %v", e, err)
	}
	var out, errs bytes.Buffer
	must(t, ReadLog(testContext(t), b.Dir, LogOptions{}, &out, &errs))
	if !strings.HasSuffix(out.String(), "after\n") || !strings.Contains(errs.String(), fmt.Sprintf("naru: %d bytes of output were not logged", e.Lost)) {
		t.Errorf("stdout ends %q, stderr %q, lost %d", out.String()[max(0, out.Len()-20):], errs.String(), e.Lost)
	}
}

func TestRotateOnRequest(t *testing.T) {
	b := newBox(t, true, "sh", "-c", ticker)
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	eventually(t, "first tick", func() bool { return b.log(t) != "" })
	must(t, c.Rotate(testContext(t)))
	if _, files := logSize(t, b.Dir); files < 2 {
		eventually(t, "two files", func() bool { _, n := logSize(t, b.Dir); return n == 2 })
	}
	b.stop(t, c)
	_, err := c.Wait(testContext(t))
	must(t, err)
	ticksAreWhole(t, b.log(t))
}

// A monitor of an older version answers in its own way; a request it does not know
// is an error that says what to do, and all else works.
func TestOlderMonitor(t *testing.T) {
	b := newBox(t, true, "sleep", "100")
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	sock := filepath.Join(b.StateDir, fileSocket)
	must(t, os.Remove(sock))
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: sock, Net: "unixpacket"})
	must(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			buf := make([]byte, 256)
			for n, err := conn.Read(buf); err == nil && n > 0; n, err = conn.Read(buf) {
				if buf[0] == '?' {
					conn.Write([]byte{'s', 'r', 1, 0, 0, 0}) // as the first monitors did
				} else {
					conn.Write([]byte{'!', byte(unix.ENOSYS), 0, 0, 0})
				}
			}
			conn.Close()
		}
	}()
	must(t, c.Close()) // the creator's own connection goes past the socket
	c, err = Open(b.StateDir, b.Dir)
	must(t, err)
	defer c.Close()
	if s, err := c.MonitorStatus(testContext(t)); err != nil || s.Protocol != 0 {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := c.Attach(testContext(t), AttachOptions{}); err == nil || !strings.Contains(err.Error(), ErrOldMonitor.Error()) {
		t.Errorf("attach: %v", err)
	}
	if err := c.Rotate(testContext(t)); err == nil || !strings.Contains(err.Error(), ErrOldMonitor.Error()) {
		t.Errorf("rotate: %v", err)
	}
	must(t, c.Kill(testContext(t)))
	if e, err := c.Wait(testContext(t)); err != nil || e.Code != 137 {
		t.Errorf("%+v %v", e, err)
	}
}

// And the other way round: an unknown request of a newer agent has a defined reply.
func TestNewerAgent(t *testing.T) {
	b := newBox(t, true, "sleep", "100")
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	m, err := dial(b.StateDir)
	must(t, err)
	defer m.close()
	if _, err := m.call(testContext(t), []byte{'~', 1, 2, 3}, 'o'); err == nil || !strings.Contains(err.Error(), unix.ENOSYS.Error()) {
		t.Error(err)
	}
	if s, err := c.MonitorStatus(testContext(t)); err != nil || s.Protocol != 3 {
		t.Errorf("%+v %v", s, err)
	}
	must(t, c.Kill(testContext(t)))
}

// OOM is said of an end that it caused, and of no other.
func TestOOM(t *testing.T) {
	limit := int64(16 << 20)
	for _, test := range []struct {
		name, script string
		code         int
		oom          bool
		kills        bool
	}{
		{"itself", "exec tail /dev/zero", 137, true, true},
		{"child", "tail /dev/zero; exit $?", 137, true, true},
		{"child, long ago", "tail /dev/zero; sleep 1.2; kill -9 $$; exit 137", 137, false, true},
		{"survived", "tail /dev/zero; exit 3", 3, false, true},
		{"none", "exit 137", 137, false, false},
	} {
		b := newBox(t, true, "sh", "-c", test.script)
		b.Spec.Linux.Resources.Memory = memoryLimit(limit)
		b.Init = test.name == "child" // pid 1 has its own way
		_, _, e := b.run(t)
		if e.Code != test.code || e.OOM != test.oom || (e.OOMKills > 0) != test.kills {
			t.Errorf("%s: %+v", test.name, e)
		}
	}
}

// What a monitor does not do while nothing happens: it is not scheduled at all.
func TestIdleMonitorSleeps(t *testing.T) {
	b := newBox(t, true, "sleep", "100")
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	pid := strconv.Itoa(b.monitorPid(t))
	private := 0
	switches := func() (n int) {
		tasks, err := filepath.Glob("/proc/" + pid + "/task/*/status")
		must(t, err)
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			must(t, err)
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, "ctxt_switches") {
					v, _ := strconv.Atoi(strings.Fields(line)[1])
					n += v
				}
			}
		}
		return n
	}
	eventually(t, "it is idle", func() bool {
		before := switches()
		time.Sleep(200 * time.Millisecond) // the time in which nothing may happen
		return switches() == before
	})
	text, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Anonymous:" { // the rest is shared with all other monitors
			v, _ := strconv.Atoi(f[1])
			private += v
		}
	}
	if _, err := os.Stat("embedded/naru-init-amd64"); err == nil && private > 1024 {
		t.Errorf("the monitor has %d kB of its own", private)
	}
	t.Logf("%d kB private", private)
	must(t, c.Kill(testContext(t)))
}

// BenchmarkLog is the way from a container's write to its log, with rotation.
func BenchmarkLog(b *testing.B) {
	const size = 2 << 30
	for range b.N {
		box := newBox(b, true, "dd", "if=/dev/zero", "bs=1M", fmt.Sprint("count=", size>>20))
		c := box.create(b)
		begin := time.Now()
		must(b, c.Start(context.Background()))
		_, err := c.Wait(context.Background())
		must(b, err)
		b.ReportMetric(size/1e6/time.Since(begin).Seconds(), "MB/s")
	}
	if out, err := exec.Command("stat", "-f", "-c", "%T", b.TempDir()).Output(); err == nil {
		b.Logf("file system: %s", out)
	}
}
