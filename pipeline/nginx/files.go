package nginx

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"naru/internal/atomicfile"
)

var pidDirective = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^\s*pid\s+([^\s;]+)\s*;`) })

// mainName is the main file's key in prev/; no app has a dot in its name.
const mainName = "nginx.main"

// edit is one file that changes: key is mainName or the app.
type edit struct {
	key  string
	file file // empty: removed
}

func (r *Router) path(key string) string {
	if key == mainName {
		return r.main
	}
	return filepath.Join(r.house.Apps, key+".conf")
}

// difference lists what has to be written to get from live to after; the main file
// first, because an app's file may need its larger tables.
func (r *Router) difference(after map[string]app, main file) []edit {
	var plan []edit
	if main.gen != r.mainNow.gen {
		plan = append(plan, edit{mainName, main})
	}
	for name, a := range after {
		if r.live[name].file.gen != a.file.gen {
			plan = append(plan, edit{name, a.file})
		}
	}
	for name := range r.live {
		if _, ok := after[name]; !ok {
			plan = append(plan, edit{key: name})
		}
	}
	return plan
}

// everything lists all that should be loaded now.
func (r *Router) everything() []edit {
	all := []edit{{mainName, r.mainNow}}
	for name, a := range r.live {
		all = append(all, edit{name, a.file})
	}
	return all
}

func (r *Router) prev() string { return filepath.Join(r.dir, "prev") }

// remember saves the files that plan changes. An empty one means: there was none.
func (r *Router) remember(plan []edit) error {
	for _, e := range plan {
		old, err := os.ReadFile(r.path(e.key))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the former file: %w", err)
		}
		if err := atomicfile.WriteFile(filepath.Join(r.prev(), e.key), old, 0o644); err != nil {
			return fmt.Errorf("remember the former file: %w", err)
		}
	}
	return nil
}

func (r *Router) install(plan []edit) error {
	for _, e := range plan {
		if err := replace(r.path(e.key), e.file.text); err != nil {
			return fmt.Errorf("install the configuration of %s: %w", e.key, err)
		}
	}
	return nil
}

// replace writes text to path, or removes path when there is none.
func replace(path string, text []byte) error {
	if len(text) > 0 {
		return atomicfile.WriteFile(path, text, 0o644)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// restore puts everything in prev/ back. It may be repeated after a crash.
func (r *Router) restore() error {
	entries, err := os.ReadDir(r.prev())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // the unfinished temporary file of a killed agent
		}
		old, err := os.ReadFile(filepath.Join(r.prev(), e.Name()))
		if err != nil {
			return err
		}
		if err := replace(r.path(e.Name()), old); err != nil {
			return err
		}
	}
	return r.forget()
}

// forget empties prev/.
func (r *Router) forget() error {
	entries, err := os.ReadDir(r.prev())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(r.prev(), e.Name())); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(r.prev())
}

// state is what is known only after a proof.
type state struct {
	Main   string            `json:"main"`   // gen
	Apps   map[string]string `json:"apps"`   // gen by app
	Reload time.Time         `json:"reload"` // when the last proof ended
}

func (r *Router) statePath() string { return filepath.Join(r.dir, "state.json") }

// confirm writes down that what is installed is proven. The turn is held.
func (r *Router) confirm() error {
	at, _ := r.reloaded()
	s := state{Main: r.mainNow.gen, Apps: make(map[string]string, len(r.live)), Reload: at}
	for name, a := range r.live {
		s.Apps[name] = a.file.gen
	}
	b, err := json.MarshalIndent(s, "", "\t")
	if err == nil {
		err = atomicfile.WriteFile(r.statePath(), b, 0o644)
	}
	if err == nil {
		err = r.forget()
	}
	if err != nil {
		return fmt.Errorf("write down the proof: %w", err)
	}
	return nil
}

// lastProof is the zero state when there was none or it cannot be read: then
// everything is proven again.
func (r *Router) lastProof() state {
	var s state
	b, err := os.ReadFile(r.statePath())
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.opts.Log("the record of the last proof is unreadable", "error", err)
	}
	return s
}

// makeDirs creates the directories; the workers' own must be open to them whatever
// the agent's umask is.
func (r *Router) makeDirs() error {
	for _, d := range []string{r.dir, r.house.Apps, r.prev(), filepath.Join(r.dir, "stage"), filepath.Dir(r.pid)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make the directories of nginx: %w", err)
		}
	}
	r.placeWork()
	w := r.house.Work
	for _, d := range []string{w, r.house.Flags, filepath.Join(w, "log"), filepath.Join(w, "tmp")} {
		err := os.MkdirAll(d, 0o755)
		if err == nil {
			err = os.Chmod(d, 0o755)
		}
		if err != nil {
			return fmt.Errorf("make the directories of nginx's workers: %w", err)
		}
	}
	return nil
}

// workDirs are the two places that the workers' directory may have. The second is
// for a dir that is shut to them; it is not in /var/tmp, which is cleaned.
func workDirs(dir string) [2]string {
	return [2]string{filepath.Join(dir, "work"), "/var/lib/naru-nginx-" + short(dir)}
}

// shut reports whether a directory above dir, or dir, keeps the workers' user out:
// they must reach their flags, bodies and logs.
func shut(dir string) bool {
	if os.Geteuid() != 0 {
		return false // then the workers are the same user
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.Mode().Perm()&0o001 == 0 {
			return true
		}
	}
	return false
}

// workerUser is "user group" for workers of a root master: the distribution's user
// for nginx, else nobody.
func workerUser() string {
	if os.Geteuid() != 0 {
		return ""
	}
	for _, name := range []string{"www-data", "nginx", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		g, err := user.LookupGroupId(u.Gid)
		if err == nil && userName().MatchString(g.Name) {
			return name + " " + g.Name
		}
	}
	return "nobody"
}

// fileLimit is how many descriptors a worker may have: the hard limit that we have
// anyway, since raising it needs a capability.
func fileLimit() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(l.Max, 65536))
}

// loadApps reads the installed files. One that we cannot read is set aside: it
// must not keep the others down.
func (r *Router) loadApps() ([]*change, error) {
	paths, err := filepath.Glob(filepath.Join(r.house.Apps, "*.conf"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var all []*change
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("read an app's file: %w", err)
		}
		c := &change{}
		c.route, err = parseApp(text)
		if err == nil && c.route.App+".conf" != filepath.Base(p) {
			err = fmt.Errorf("it is the file of app %s", c.route.App)
		}
		if err == nil {
			c.file, err = r.house.renderApp(c.route)
		}
		if err != nil {
			if err := r.setAside(p, err); err != nil {
				return nil, err
			}
			continue
		}
		all = append(all, c)
	}
	return all, nil
}

func (r *Router) setAside(path string, why error) error {
	r.opts.Log("configuration file is set aside", "file", path, "error", why)
	to := path + ".refused-" + strconv.FormatInt(time.Now().Unix(), 10)
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("set a refused file aside: %w", err)
	}
	return nil
}
