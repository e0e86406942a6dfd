package source

import (
	"net"
	"net/http/cgi"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"naru/sandbox/build"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// gitServer serves the parent directory of the upstream by http.
func gitServer(t *testing.T, u *upstream) string {
	t.Helper()
	path := u.git("--exec-path") + "/git-http-backend"
	if _, err := os.Stat(path); err != nil {
		t.Skip("git-http-backend is not installed")
	}
	srv := httptest.NewServer(&cgi.Handler{Path: path, Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(u.dir), "GIT_HTTP_EXPORT_ALL=1"}})
	t.Cleanup(srv.Close)
	return srv.URL + "/" + filepath.Base(u.dir)
}

func TestCheckout(t *testing.T) {
	u := newUpstream(t)
	u.write("f", "one")
	u.write("d/g", "G")
	if err := os.Symlink("/etc/passwd", filepath.Join(u.dir, "l")); err != nil {
		t.Fatal(err)
	}
	first := u.commit("first")
	u.git("tag", "-a", "v1", "-m", "one")
	tag := u.git("rev-parse", "v1")
	u.git("branch", "side")
	u.write("f", "two")
	second := u.commit("second")
	url := gitServer(t, u)
	for name, c := range map[string]struct {
		s      build.GitSource
		commit string
		f      string
		err    string
	}{
		"default":             {build.GitSource{}, second, "two", ""},
		"tag":                 {build.GitSource{Ref: "v1"}, first, "one", ""},
		"whole tag":           {build.GitSource{Ref: "refs/tags/v1"}, first, "one", ""},
		"branch":              {build.GitSource{Ref: "refs/heads/side"}, first, "one", ""},
		"commit":              {build.GitSource{Ref: first}, first, "one", ""},
		"checksum":            {build.GitSource{Ref: "side", Commit: first[:10]}, first, "one", ""},
		"checksum of the tag": {build.GitSource{Ref: "v1", Commit: tag}, first, "one", ""},
		"wrong checksum":      {build.GitSource{Ref: "side", Commit: second}, "", "", "expected a commit that begins with"},
		"missing":             {build.GitSource{Ref: "nope"}, "", "", `does not contain ref "nope"`},
		"missing commit":      {build.GitSource{Ref: strings.Repeat("1", 40)}, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.s.URL, c.s.Reach = url, loopback
			commit, err := Fetcher{}.Checkout(t.Context(), c.s, dir)
			if c.commit == "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%q, %v", commit, err)
				}
				return
			}
			if err != nil || commit != c.commit {
				t.Fatalf("%q, want %q: %v", commit, c.commit, err)
			}
			if data, _ := os.ReadFile(filepath.Join(dir, "f")); string(data) != c.f {
				t.Errorf("f is %q", data)
			}
			if to, _ := os.Readlink(filepath.Join(dir, "l")); to != "/etc/passwd" {
				t.Errorf("l is %q", to)
			}
			if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
				t.Error(".git is there")
			}
		})
	}
	if _, err := (Fetcher{}).Checkout(t.Context(), build.GitSource{URL: url}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "may not be reached") {
		t.Errorf("loopback: %v", err)
	}
	if _, err := (Fetcher{}).Checkout(t.Context(), build.GitSource{URL: "file://" + u.dir}, t.TempDir()); err == nil || !strings.Contains(err.Error(), `"file" is not allowed`) {
		t.Errorf("file: %v", err)
	}
}

// TestCheckoutKeep: git finds a clean, shallow repository.
func TestCheckoutKeep(t *testing.T) {
	u := newUpstream(t)
	u.write("f", "one")
	u.commit("first")
	u.write("d/x", "two")
	second := u.commit("second")
	dir := t.TempDir()
	if _, err := (Fetcher{}).Checkout(t.Context(), build.GitSource{URL: gitServer(t, u), KeepDir: true, Reach: loopback}, dir); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{"rev-parse HEAD": second, "status --porcelain": "", "rev-list --count HEAD": "1", "fsck": ""} {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "safe.directory=*"}, strings.Fields(args)...)...)
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("git %s: %q, %v", args, out, err)
		}
	}
}

func TestCheckoutSubmodules(t *testing.T) {
	inner, u := newUpstream(t), newUpstream(t)
	inner.write("in", "IN")
	inner.commit("inner")
	url := gitServer(t, inner)
	u.write("f", "F")
	u.git("-c", "protocol.http.allow=always", "submodule", "add", url, "sub/mod")
	u.commit("with submodule")
	outer := gitServer(t, u)
	for _, want := range []bool{true, false} {
		dir := t.TempDir()
		if _, err := (Fetcher{}).Checkout(t.Context(), build.GitSource{URL: outer, Submodules: want, Reach: loopback}, dir); err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(filepath.Join(dir, "sub/mod/in"))
		if (string(data) == "IN") != want {
			t.Errorf("submodules %t: %q", want, data)
		}
		if _, err := os.Stat(filepath.Join(dir, "sub/mod/.git")); err == nil {
			t.Error("a .git is left")
		}
	}
}

// TestCheckoutGitProtocol asks git-daemon(1).
func TestCheckoutGitProtocol(t *testing.T) {
	u := newUpstream(t)
	u.write("f", "F")
	want := u.commit("first")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	path := u.git("--exec-path") + "/git-daemon"
	if _, err := os.Stat(path); err != nil {
		t.Skip("git-daemon is not installed")
	}
	cmd := exec.Command(path, "--export-all", "--listen=127.0.0.1", "--port="+port, "--base-path="+filepath.Dir(u.dir))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	deadline := time.Now().Add(5 * time.Second)
	for {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("git-daemon does not listen")
		}
		time.Sleep(10 * time.Millisecond)
	}
	commit, err := Fetcher{}.Checkout(t.Context(), build.GitSource{URL: "git://127.0.0.1:" + port + "/" + filepath.Base(u.dir), Reach: loopback}, t.TempDir())
	if err != nil || commit != want {
		t.Errorf("%q, want %q: %v", commit, want, err)
	}
}

// TestCheckoutSSH uses the keys of an agent, and known hosts only.
func TestCheckoutSSH(t *testing.T) {
	u := newUpstream(t)
	u.write("f", "F")
	want := u.commit("first")
	signer, keyFile := sshKeyPair(t)
	addr, host := sshServer(t, u, signer.PublicKey())
	data, err := os.ReadFile(keyFile)
	must(t, err)
	key, err := ssh.ParseRawPrivateKey(data)
	must(t, err)
	ring := agent.NewKeyring()
	must(t, ring.Add(agent.AddedKey{PrivateKey: key}))
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c); c.Close() }()
		}
	}()
	known := file(t, knownhosts.Line([]string{addr}, host)+"\n")
	s := build.GitSource{URL: "ssh://git@" + addr + u.dir, Reach: loopback}
	commit, err := Fetcher{AgentSocket: socket, KnownHosts: known}.Checkout(t.Context(), s, t.TempDir())
	if err != nil || commit != want {
		t.Errorf("%q, want %q: %v", commit, want, err)
	}
	if _, err := (Fetcher{AgentSocket: socket, KnownHosts: file(t, "")}).Checkout(t.Context(), s, t.TempDir()); err == nil {
		t.Error("an unknown host was trusted")
	}
	if _, err := (Fetcher{}).Checkout(t.Context(), s, t.TempDir()); err == nil || !strings.Contains(err.Error(), "ssh agent") {
		t.Error(err)
	}
}
