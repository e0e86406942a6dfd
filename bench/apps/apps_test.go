// Package apps builds and runs real applications: a Go service, a Node site with
// npm packages, a Python one, a layered Java service, and pages behind nginx, each
// on Debian with what apt gives it.
package apps

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// epoch is SOURCE_DATE_EPOCH of all builds.
const epoch = "1700000000"

// machine is a data root of naru.
type machine struct{ bin, root, run string }

func newMachine(t *testing.T, bin string) machine {
	dir := t.TempDir()
	m := machine{bin, filepath.Join(dir, "root"), filepath.Join(dir, "run")}
	t.Cleanup(func() { // what a failed test has left, and the network of builds
		if out, err := m.command("system", "reset", "--force").CombinedOutput(); err != nil {
			t.Errorf("reset: %v\n%s", err, out)
		}
	})
	return m
}

func (m machine) command(args ...string) *exec.Cmd {
	return exec.Command(m.bin, append([]string{"--root", m.root, "--run", m.run}, args...)...)
}

// naru runs a command and returns its standard output.
func (m machine) naru(t *testing.T, args ...string) string {
	t.Helper()
	cmd := m.command(args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("naru %s: %v\n%s", strings.Join(args, " "), err, log.Bytes())
	}
	return strings.TrimSpace(out.String())
}

// TestApps takes minutes and downloads what apt, Go and npm need: `make apps`.
// NARU_APPS=all runs all, or name some: NARU_APPS=go,node.
func TestApps(t *testing.T) {
	which := os.Getenv("NARU_APPS")
	if which == "" {
		t.Skip("takes minutes and downloads a lot: make apps")
	}
	bin := filepath.Join(t.TempDir(), "naru")
	if out, err := exec.Command("go", "build", "-o", bin, "../..").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	one, two := newMachine(t, bin), newMachine(t, bin)
	for _, m := range []machine{one, two} {
		m.naru(t, "import", debian(t), "debian:bookworm")
	}
	for name, want := range map[string]string{
		"go": "go 1.0: Don't communicate", "node": "node: express 4.21.2", "python": "python: flask", "java": `java: {"layers":2}`, "static": "static: 2 files",
	} {
		if which != "all" && !strings.Contains(","+which+",", ","+name+",") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			id := build(t, name, one, two)
			answers(t, one, id, want)
		})
	}
}

// debian is a root file system of Debian: NARU_APPS_BASE, or a new one.
func debian(t *testing.T) string {
	if file := os.Getenv("NARU_APPS_BASE"); file != "" {
		return file
	}
	file := filepath.Join(t.TempDir(), "debian.tar")
	if out, err := exec.Command("mmdebstrap", "--variant=minbase", "bookworm", file).CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	return file
}

// build makes the app on two machines, from the same base, which apt makes only
// once, and wants the same image.
func build(t *testing.T, name string, one, two machine) string {
	archive := filepath.Join(t.TempDir(), "apt.tar")
	one.naru(t, "build", "-t", "apt-"+name, "-f", name+"/base.Dockerfile", name)
	one.naru(t, "save", "-o", archive, "apt-"+name)
	two.naru(t, "load", "-i", archive)
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range []machine{one, two} {
		ids = append(ids, m.naru(t, "build", "-q", "-t", name, "--build-arg", "SOURCE_DATE_EPOCH="+epoch, "--build-arg", "VERSION=1.0",
			"--secret", "id=ca,src=/etc/ssl/certs/ca-certificates.crt", name))
	}
	if ids[0] != ids[1] {
		t.Errorf("two machines made two images: %s and %s", ids[0], ids[1])
	}
	return ids[0]
}

// answers runs the image and wants a page from it, and an end within its grace.
func answers(t *testing.T, m machine, image, want string) {
	addr := freePort(t)
	id := m.naru(t, "run", "-d", "-p", addr+":8080", image)
	deadline := time.Now().Add(30 * time.Second)
	for {
		body, err := get("http://" + addr + "/")
		if err == nil && strings.Contains(body, want) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the app answers %q (%v), want %q; its log:\n%s", body, err, want, m.naru(t, "logs", id))
		}
		time.Sleep(50 * time.Millisecond)
	}
	start := time.Now()
	m.naru(t, "stop", id)
	if took := time.Since(start); took > 9*time.Second {
		t.Errorf("the app did not obey its stop signal: %s", took)
	}
	m.naru(t, "rm", id)
}

func get(url string) (string, error) {
	r, err := (&http.Client{Timeout: 2 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", r.Status)
	}
	return string(body), err
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // only its number is wanted
	return l.Addr().String()
}
