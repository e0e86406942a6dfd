package source

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"naru/pipeline"
)

const testToken = "ghp_s3cretT0ken"

// httpsServer serves the parent directory of the upstream with git's own CGI,
// over TLS, to those who have the token.
func httpsServer(t *testing.T, u *upstream) *httptest.Server {
	t.Helper()
	path := u.git("--exec-path") + "/git-http-backend"
	if _, err := os.Stat(path); err != nil {
		t.Skip("git-http-backend is not installed")
	}
	backend := &cgi.Handler{Path: path, Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(u.dir), "GIT_HTTP_EXPORT_ALL=1"}, Stderr: io.Discard}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "x-access-token" || password != testToken {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func trust(s *Store, srv *httptest.Server) {
	s.caBundle = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestHTTPS(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.write("a", strings.Repeat("text\n", 1000))
	u.commit("first")
	srv := httpsServer(t, u)
	repo := pipeline.Repo{URL: srv.URL + "/up/.git", Branch: "main", TokenFile: file(t, testToken+"\n")}

	if _, err := s.Fetch(t.Context(), repo, "", io.Discard); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
	trust(s, srv)
	var out bytes.Buffer
	if _, err := s.Fetch(t.Context(), repo, "", &out); err != nil {
		t.Fatal(err)
	}
	u.write("a", "2")
	tip := u.commit("second")
	if got := fetch(t, s, repo, tip); got.Hash != tip {
		t.Errorf("got %v", got)
	}
	dir := filepath.Join(t.TempDir(), "out")
	must(t, s.Export(t.Context(), repo, tip, dir))
	if got := listing(t, dir)["a"]; got != `-rw-r--r-- "2"` {
		t.Errorf("got %s", got)
	}

	for name, tokenFile := range map[string]string{"wrong": file(t, "gho_wrongT0ken"), "none": "", "empty": file(t, "\n"), "two lines": file(t, "a\nb"), "missing": "/none/such"} {
		repo.TokenFile = tokenFile
		_, err := s.Fetch(t.Context(), repo, "", &out)
		if err == nil || strings.Contains(err.Error()+out.String(), "T0ken") {
			t.Errorf("%s token: %v, log %q", name, err, out.String())
		}
		if (name == "wrong" || name == "none") && !strings.Contains(err.Error(), "check the URL and source.token_file") {
			t.Errorf("%s token: %v", name, err)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(mirrorDir(t, s), "config")); bytes.Contains(data, []byte("T0ken")) {
		t.Error("the token is in the mirror's config")
	}
}

// TestTokenIsNotShown lets the server say the token back in every way it can.
func TestTokenIsNotShown(t *testing.T) {
	newUpstream(t)
	for _, status := range []int{200, 400, 403, 404, 500} {
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(status)
			fmt.Fprintf(w, "no %s for you", testToken)
		}))
		s := open(t)
		trust(s, srv)
		var out bytes.Buffer
		_, err := s.Fetch(t.Context(), pipeline.Repo{URL: srv.URL + "/a.git", Branch: "main", TokenFile: file(t, testToken)}, "", &out)
		if err == nil || strings.Contains(err.Error()+out.String(), testToken) {
			t.Errorf("%d: %v, log %q", status, err, out.String())
		}
		srv.Close()
	}
}

// TestTokenStaysWithItsHost sends the client on to another host, where the token
// must not arrive (CVE-2026-41506).
func TestTokenStaysWithItsHost(t *testing.T) {
	var leaked atomic.Bool
	thief := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		http.NotFound(w, r)
	}))
	defer thief.Close()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// another name of the same address is another host
		http.Redirect(w, r, strings.Replace(thief.URL, "127.0.0.1", "localhost", 1)+r.URL.String(), http.StatusFound)
	}))
	defer srv.Close()
	s := open(t)
	trust(s, srv)
	_, err := s.Fetch(t.Context(), pipeline.Repo{URL: srv.URL + "/a.git", Branch: "main", TokenFile: file(t, testToken)}, "", io.Discard)
	if err == nil || leaked.Load() {
		t.Errorf("leaked %v, err %v", leaked.Load(), err)
	}
}

// silent is a server that accepts connections and says nothing.
func silent(t *testing.T) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	return l.Addr()
}

func TestContextEndsAHangingFetch(t *testing.T) {
	addr := silent(t).String()
	_, key := sshKeyPair(t)
	host, _ := sshKeyPair(t)
	for name, repo := range map[string]pipeline.Repo{
		"https": {URL: "https://" + addr + "/a", Branch: "main"},
		"ssh":   {URL: "ssh://git@" + addr + "/a", Branch: "main", KeyFile: key, KnownHosts: file(t, knownhosts.Line([]string{addr}, host.PublicKey())+"\n")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := s.Fetch(ctx, repo, "", io.Discard)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	}
}

// sshKeyPair makes a key and the file that holds it.
func sshKeyPair(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	must(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	must(t, err)
	return signer, file(t, string(pem.EncodeToMemory(block)))
}

// sshServer runs what is asked for when it is git-upload-pack of the upstream, for
// the client with the given key.
func sshServer(t *testing.T, u *upstream, client ssh.PublicKey) (addr string, host ssh.PublicKey) {
	t.Helper()
	signer, _ := sshKeyPair(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), client.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSSH(c, config, u.dir)
		}
	}()
	return l.Addr().String(), signer.PublicKey()
}

func serveSSH(c net.Conn, config *ssh.ServerConfig, dir string) {
	defer c.Close()
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go func() {
			defer channel.Close()
			for r := range requests {
				if r.Type != "exec" || len(r.Payload) < 4 || string(r.Payload[4:]) != "git-upload-pack '"+dir+"'" {
					_ = r.Reply(false, nil)
					continue
				}
				_ = r.Reply(true, nil)
				cmd := exec.Command("git-upload-pack", dir)
				in, err := cmd.StdinPipe() // not cmd.Stdin: Wait would wait for the client's end
				cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
				if err != nil || cmd.Start() != nil {
					return
				}
				go func() { _, _ = io.Copy(in, channel); _ = in.Close() }()
				_ = cmd.Wait()
				_, _ = channel.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
				return
			}
		}()
	}
}

func TestSSH(t *testing.T) {
	t.Setenv("HOME", t.TempDir()) // no ssh_config, no agent, no known_hosts of this machine
	u, s := newUpstream(t), open(t)
	u.write("a", "1")
	u.commit("first")
	client, keyFile := sshKeyPair(t)
	addr, host := sshServer(t, u, client.PublicKey())
	good := pipeline.Repo{URL: "ssh://git@" + addr + u.dir, Branch: "main", KeyFile: keyFile,
		KnownHosts: file(t, knownhosts.Line([]string{addr}, host)+"\n")}
	fetch(t, s, good, "")
	u.write("a", "2")
	tip := u.commit("second")
	if got := fetch(t, s, good, ""); got.Hash != tip {
		t.Errorf("got %v", got)
	}

	other, otherFile := sshKeyPair(t)
	block, err := ssh.MarshalPrivateKeyWithPassphrase(ed25519.NewKeyFromSeed(make([]byte, 32)), "", []byte("pass"))
	must(t, err)
	for _, c := range []struct {
		name, want string
		edit       func(*pipeline.Repo)
	}{
		{"no key", "needs source.key_file", func(r *pipeline.Repo) { r.KeyFile = "" }},
		{"no known_hosts", "needs source.key_file and source.known_hosts", func(r *pipeline.Repo) { r.KnownHosts = "" }},
		{"a key the server does not know", "does not accept source.key_file", func(r *pipeline.Repo) { r.KeyFile = otherFile }},
		{"a key with a passphrase", "has a passphrase", func(r *pipeline.Repo) { r.KeyFile = file(t, string(pem.EncodeToMemory(block))) }},
		{"a key that is none", "not a private key", func(r *pipeline.Repo) { r.KeyFile = file(t, "s3cret") }},
		{"an unknown host", "has no key of " + addr, func(r *pipeline.Repo) { r.KnownHosts = file(t, "") }},
		{"another host key", "host key is not the one", func(r *pipeline.Repo) {
			r.KnownHosts = file(t, knownhosts.Line([]string{addr}, other.PublicKey())+"\n")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			repo := good
			c.edit(&repo)
			if _, err := s.Fetch(t.Context(), repo, "", io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestShortSSHForm(t *testing.T) {
	r, err := parseRemote(pipeline.Repo{URL: "git@example.com:acme/web.git", Branch: "main"})
	if err != nil || r.scheme != "ssh" || r.user != "git" || r.host != "example.com:22" {
		t.Errorf("%+v, %v", r, err)
	}
}
