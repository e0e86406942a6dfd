package openat

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenWhileOthersRename opens a path full of ".." while files are renamed elsewhere;
// openat2(2) alone must fail at that, or the test shows nothing.
func TestOpenWhileOthersRename(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = errors.Join(os.Rename(dir+"/a", dir+"/b"), os.Rename(dir+"/b", dir+"/a"))
			}
		}
	}()
	path := strings.Repeat("../", 1000)
	alone := 0
	for i := 0; i < 1000 || alone == 0 && i < 100_000; i++ {
		if f, err := unix.Openat2(fd, path, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT}); err == nil {
			unix.Close(f)
		} else if errors.Is(err, unix.EAGAIN) {
			alone++
		}
		f, err := Open(fd, path, unix.O_PATH, unix.RESOLVE_IN_ROOT)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(f)
	}
	close(stop)
	<-stopped
	if alone == 0 {
		t.Skip("the kernel never gave up here")
	}
	if _, err := Open(fd, "missing", unix.O_PATH, unix.RESOLVE_IN_ROOT); !errors.Is(err, unix.ENOENT) {
		t.Errorf("what is missing: %v", err)
	}
}
