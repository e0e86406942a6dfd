package image

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"

	"naru/sandbox/image/registry"
)

// guarded lets only one user in, by basic authentication.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func TestLogInPullLogOut(t *testing.T) {
	host := inProcess(t, guarded)
	config := filepath.Join(t.TempDir(), "docker")
	t.Setenv("DOCKER_CONFIG", config)
	file := filepath.Join(config, "config.json")
	s := newStore(t)
	img := importFiles(t, s, host+"/x:1", "f")
	if _, err := s.Push(ctx, host+"/x:1", PushOptions{}); err == nil {
		t.Fatal("pushed without credentials")
	}
	if _, err := LogIn(ctx, Login{Host: host, User: "me", Password: "wrong"}, nil); err == nil {
		t.Fatal("logged in with a wrong password")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a wrong password was stored")
	}
	if err := os.MkdirAll(config, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"auths":{},"detachKeys":"ctrl-x"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	stored, err := LogIn(ctx, Login{Host: host, User: "me", Password: "secret"}, nil)
	if err != nil || stored != (Stored{File: file, Plain: true}) {
		t.Fatalf("got %+v, %v", stored, err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	data, err := os.ReadFile(file)
	want := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	if err != nil || !strings.Contains(string(data), want) || !strings.Contains(string(data), "ctrl-x") {
		t.Errorf("config.json is %s (%v)", data, err)
	}
	digest, err := s.Push(ctx, host+"/x:1", PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkPushed(t, s, img, host+"/x:1", digest.String())
	for _, want := range []bool{true, false} {
		if known, err := LogOut(host); err != nil || known != want {
			t.Errorf("log out: %v, %v, want %v", known, err, want)
		}
	}
	if _, err := s.Pull(ctx, host+"/x:1", PullOptions{}); err == nil {
		t.Error("pulled after the log out")
	}
}

// A credential helper is a program docker-credential-NAME that speaks JSON.
func TestCredentialHelpers(t *testing.T) {
	host := inProcess(t, guarded)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	helper := fmt.Sprintf(`#!/bin/sh
read -r input
case "$1" in
get) [ -e %[1]s/kept ] || { echo 'credentials not found in native keychain'; exit 1; }; echo '{"ServerURL":"'"$input"'","Username":"me","Secret":"secret"}' ;;
store) echo "$input" >%[1]s/kept ;;
erase) rm -f %[1]s/kept ;;
esac
`, dir)
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, config := range []map[string]any{{"credsStore": "test"}, {"credHelpers": map[string]string{host: "test"}}} {
		data, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		stored, err := LogIn(ctx, Login{Host: host, User: "me", Password: "secret"}, nil)
		if err != nil || stored.Plain {
			t.Fatalf("%s: %+v, %v", data, stored, err)
		}
		kept, err := os.ReadFile(filepath.Join(dir, "kept"))
		if err != nil || !strings.Contains(string(kept), `"Secret":"secret"`) {
			t.Errorf("%s: the helper got %s (%v)", data, kept, err)
		}
		if after, err := os.ReadFile(stored.File); err != nil || strings.Contains(string(after), "secret") {
			t.Errorf("the password is in the file: %s (%v)", after, err)
		}
		s := newStore(t)
		importFiles(t, s, host+"/x:1", "f")
		if _, err := s.Push(ctx, host+"/x:1", PushOptions{}); err != nil {
			t.Errorf("%s: %v", data, err)
		}
		if known, err := LogOut(host); !known || err != nil {
			t.Errorf("log out: %v, %v", known, err)
		}
	}
}

// An identity token is exchanged for an access token (Docker's token
// specification, "oauth"), and that one is what the registry wants.
func TestIdentityToken(t *testing.T) {
	var host string
	host = inProcess(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token":
				if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != "refresh_token" || r.PostForm.Get("refresh_token") != "identity" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_, _ = io.WriteString(w, `{"access_token":"access"}`)
			case r.Header.Get("Authorization") != "Bearer access":
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+host+`/token",service="test"`)
				w.WriteHeader(http.StatusUnauthorized)
			default:
				next.ServeHTTP(w, r)
			}
		})
	})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	auth := base64.StdEncoding.EncodeToString([]byte("00000000-0000-0000-0000-000000000000:"))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q,"identitytoken":"identity"}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	importFiles(t, s, host+"/x:1", "f")
	if _, err := s.Push(ctx, host+"/x:1", PushOptions{}); err != nil {
		t.Error(err)
	}
}

// A registry with a certificate of its own is reached with its CA, or as an
// insecure one, and not else.
func TestCertificates(t *testing.T) {
	server := httptest.NewTLSServer(ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0))))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	importFiles(t, s, host+"/x:1", "f")
	for _, test := range []struct {
		hosts map[string]registry.Host
		want  string
	}{
		{nil, "certificate"},
		{map[string]registry.Host{host: {CA: ca}}, ""},
		{map[string]registry.Host{host: {Insecure: true}}, ""},
		{map[string]registry.Host{host: {CA: ca + ".missing"}}, "no such file"},
		{map[string]registry.Host{host: {CA: "/dev/null"}}, "no certificate"},
	} {
		s.UseRegistries(test.hosts)
		_, err := s.Push(ctx, host+"/x:1", PushOptions{})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%v: %v, want %q", test.hosts, err, test.want)
		}
	}
}

func TestRegistryKey(t *testing.T) {
	for host, want := range map[string]string{"": hubKey, "docker.io": hubKey, "https://index.docker.io/v1/": hubKey, "https://ghcr.io/": "ghcr.io", "localhost:5000": "localhost:5000"} {
		if _, key, err := registryKey(host); err != nil || key != want {
			t.Errorf("%q: %q, %v, want %q", host, key, err, want)
		}
	}
	if _, _, err := registryKey("not a host/x"); err == nil {
		t.Error("took no host")
	}
}
