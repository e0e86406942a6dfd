package nginx

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is an nginx as a distribution lays it out, under a root of its own. The
// includes are relative on purpose: nginx.org's own packages and many admins do so.
func machine(t *testing.T) (Options, func()) {
	t.Helper()
	needNginx(t)
	root := t.TempDir()
	conf := filepath.Join(root, "etc/nginx/nginx.conf")
	for _, d := range []string{"etc/nginx/conf.d", "var/log", "var/lib", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	var temp strings.Builder
	for _, n := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp.WriteString("\t" + n + "_temp_path " + root + "/var/lib/" + n + ";\n")
	}
	files := map[string]string{
		conf: "user www-data;\nworker_processes 1;\npid " + root + "/run/nginx.pid;\nerror_log " + root + "/var/log/error.log;\n" +
			"events { worker_connections 768; }\nhttp {\n\tinclude mime.types;\n\taccess_log off;\n" + temp.String() + "\tinclude conf.d/*.conf;\n}\n",
		filepath.Join(root, "etc/nginx/mime.types"):          "types { text/html html; }\n",
		filepath.Join(root, "etc/nginx/conf.d/default.conf"): "server { listen " + port + " default_server; return 200 \"machine\"; }\n",
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{
		Mode: "system", Dir: root + "/naru", Run: root + "/run/naru", Listen: []string{port}, SystemConf: conf,
		SystemInclude: filepath.Join(root, "etc/nginx/conf.d/naru.conf"),
		Log:           func(msg string, kv ...any) { t.Logf("%s %v", msg, kv) },
	}
	start := func() {
		t.Helper()
		out, err := os.Create(root + "/var/log/start.log")
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := exec.Command("/usr/sbin/nginx", "-e", root+"/var/log/error.log", "-c", conf)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			said, _ := os.ReadFile(out.Name())
			t.Fatalf("%v: %s", err, said)
		}
		// It goes into the background before it has written its pid and its title.
		eventually(t, "the machine's nginx is ready", func() bool {
			b, err := os.ReadFile(root + "/run/nginx.pid")
			pid, perr := strconv.Atoi(strings.TrimSpace(string(b)))
			return err == nil && perr == nil && strings.HasPrefix(title(pid), masterTitle)
		})
	}
	start()
	return o, start
}

// endMachine kills the machine's nginx with all its workers.
func endMachine(t *testing.T, r *Router, s syscall.Signal) {
	t.Helper()
	m, err := r.findMaster()
	if err != nil {
		return
	}
	defer m.close()
	serving, lingering, err := r.workers()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.signal(s); err != nil {
		t.Fatal(err)
	}
	for _, w := range append(serving, lingering...) {
		if s == syscall.SIGKILL && w.alive() {
			_ = syscall.Kill(w.pid, s) // it may just have ended
		}
	}
	eventually(t, "the machine's nginx is gone", func() bool { return !m.alive() && len(stillAlive(append(serving, lingering...))) == 0 })
}

func TestSystemMode(t *testing.T) {
	o, start := machine(t)
	r := open(t, o)
	t.Cleanup(func() {
		endMachine(t, r, syscall.SIGTERM)
		if err := os.RemoveAll(workDirs(r.dir)[1]); err != nil {
			t.Error(err)
		}
	})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	supervised(t, r)
	a, b := newReplica(t, "1"), newReplica(t, "2")
	for _, rep := range []*replica{a, b} {
		if err := r.Route(t.Context(), route("web", rep.addr)); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Prove(t.Context(), route("web", rep.addr), "/now"); err != nil || got != rep.addr {
			t.Fatalf("proved %v, %v", got, err)
		}
	}
	if err := r.Retire(t.Context(), []netip.AddrPort{a.addr}, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, body, _ := fetch(t, r, "other.example.com"); body != "machine" {
		t.Fatalf("the machine's own site answers %q", body)
	}

	broken := filepath.Join(filepath.Dir(o.SystemInclude), "admin.conf")
	if err := os.WriteFile(broken, []byte("half an ed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Route(t.Context(), route("web", a.addr)); err == nil || !strings.Contains(err.Error(), "even without this route") {
		t.Fatalf("got %v", err)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}

	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		endMachine(t, r, s)
		eventually(t, "the names of dead sockets are removed", func() bool {
			_, err := os.Lstat(r.house.Status)
			return os.IsNotExist(err)
		})
		start()
		if status, body, _ := fetch(t, r, "web.example.com"); status != 200 || body != "2\n" {
			t.Fatalf("after %v: %d %q", s, status, body)
		}
	}
}

func TestSystemModeLeavesForeignFilesAlone(t *testing.T) {
	o, _ := machine(t)
	r := open(t, o)
	t.Cleanup(func() { endMachine(t, r, syscall.SIGTERM) })
	if err := os.WriteFile(o.SystemInclude, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "not written by naru") {
		t.Fatalf("got %v", err)
	}
	if err := os.RemoveAll(workDirs(r.dir)[1]); err != nil {
		t.Fatal(err)
	}
}
