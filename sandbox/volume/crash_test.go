package volume

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const envCrash = "NARU_VOLUME_TEST_CRASH"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envCrash); dir != "" {
		importForEver(dir)
	}
	os.Exit(m.Run())
}

// version is a tar of files that all have the same content.
func version(n int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := fmt.Sprint("version ", n)
	for i := range 40 {
		h := tar.Header{Name: fmt.Sprint("f", i), Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(text))}
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func importForEver(dir string) {
	s, err := Open(dir)
	for n := 0; err == nil; n++ {
		err = s.Import(context.Background(), "data", bytes.NewReader(version(n)), true)
	}
	fmt.Println(err)
	os.Exit(3)
}

// TestImportKilledAtAnyMoment kills a process that imports over and over: the
// volume is always whole, and what is left over is swept, but not while in use.
func TestImportKilledAtAnyMoment(t *testing.T) {
	s := open(t)
	for kill := range 20 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envCrash+"="+s.dir)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(20+kill*3) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("it ended by itself: %s", out.String())
		}
		v, err := s.Get("data")
		if errors.Is(err, ErrNotFound) {
			continue // killed before the first was whole
		}
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(v.Path, "f*"))
		if err != nil || len(files) != 40 {
			t.Fatalf("kill %d: %d files, %v", kill, len(files), err)
		}
		first := ""
		for _, f := range files {
			data, err := os.ReadFile(f)
			if first == "" {
				first = string(data)
			}
			if err != nil || string(data) != first {
				t.Fatalf("kill %d: %q beside %q, %v", kill, data, first, err)
			}
		}
	}
	tmp, unlock, err := s.temp() // somebody is filling one, for an hour
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(s.dir, ".*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range left {
		if err := os.Chtimes(dir, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, ".*")); err != nil || len(left) != 1 || left[0] != tmp {
		t.Errorf("left: %v, %v; want the one that is being filled", left, err)
	}
	unlock()
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
