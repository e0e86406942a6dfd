package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"naru/pipeline"
)

// book is the releases of the app web under test.
type book struct {
	t *testing.T
	*Store
}

func (b book) create(app string, want int) {
	b.t.Helper()
	d := deployment(app)
	enqueue(b.t, b.Store, d, nil)
	r := pipeline.Release{App: app, Deployment: d.ID, Commit: "c", Image: "sha256:" + d.ID, Config: pipeline.App{Name: app}, Created: d.Created}
	first, err := b.Create(b.t.Context(), r)
	if err != nil || first.Number != want {
		b.t.Fatalf("release %d, %v, want %d", first.Number, err, want)
	}
	again, err := b.Create(b.t.Context(), r)
	if diff := cmp.Diff(first, again); err != nil || diff != "" {
		b.t.Errorf("second Create: %v %s", err, diff)
	}
}

func (b book) live(number, keep int) {
	b.t.Helper()
	for range 2 { // a step may run twice
		if err := b.SetLive(b.t.Context(), "web", number, keep); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b book) check(want string) {
	b.t.Helper()
	all, err := b.Releases(b.t.Context(), "web")
	if err != nil {
		b.t.Fatal(err)
	}
	var got []string
	for _, r := range all {
		text := fmt.Sprint(r.Number)
		if r.Live {
			text += " live"
		}
		if r.Kept {
			text += " kept"
		}
		got = append(got, text)
	}
	if text := strings.Join(got, ", "); text != want {
		b.t.Errorf("releases %s, want %s", text, want)
	}
}

func (b book) previous(want int) {
	b.t.Helper()
	r, err := b.Previous(b.t.Context(), "web")
	if r.Number != want || (want == 0) != errors.Is(err, ErrNotFound) {
		b.t.Errorf("the release before the live one: %d, %v, want %d", r.Number, err, want)
	}
}

func TestReleases(t *testing.T) {
	b := book{t, openNew(t)}
	if r, err := b.LiveRelease(t.Context(), "web"); r != nil || err != nil {
		t.Errorf("live before the first: %v, %v", r, err)
	}
	for n := 1; n <= 3; n++ {
		b.create("web", n)
		b.live(n, 2)
	}
	b.create("web", 4) // never goes live
	b.create("api", 1)
	b.check("4, 3 live kept, 2 kept, 1 kept")
	b.previous(2)
	b.live(2, 2)
	b.check("4, 3 kept, 2 live kept, 1 kept")
	b.previous(1)
	b.live(3, 0)
	b.check("4, 3 live kept, 2, 1")
	b.live(3, 5) // what is given up does not come back
	b.check("4, 3 live kept, 2, 1")
	b.previous(0)
	if err := b.SetLive(t.Context(), "web", 9, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown release live: %v", err)
	}
	b.check("4, 3 live kept, 2, 1")
	// Release 4 and that of api have a deployment that is not finished.
	if needed, err := b.NeededImages(t.Context()); err != nil || len(needed) != 3 {
		t.Errorf("needed images %v, %v", needed, err)
	}
}

func TestMigration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd ?#% name", "naru.db")
	s := open(t, path)
	d := deployment("web")
	enqueue(t, s, d, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SetScheduled(t.Context(), "a", "b", time.Now()); !errors.Is(err, errClosed) {
		t.Errorf("write after close: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", info.Mode(), err)
	}
	before := migrations
	defer func() { migrations = before }()
	migrations = append(migrations[:len(migrations):len(migrations)], "CREATE TABLE more (x)", "CREATE TABLE wrong (", "")
	if _, err := Open(path); err == nil {
		t.Fatal("a broken migration was accepted")
	}
	migrations = migrations[:len(before)+1]
	s = open(t, path)
	if state(t, s, d.ID).State != pipeline.Queued {
		t.Error("the deployment was lost")
	}
	copied := open(t, fmt.Sprintf("%s.schema%d.bak", path, len(before)))
	if state(t, copied, d.ID).State != pipeline.Queued {
		t.Error("the backup does not have the deployment")
	}
	migrations = before
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "newer naru") {
		t.Errorf("database of a newer naru: %v", err)
	}
}

func TestForget(t *testing.T) {
	s := openNew(t)
	old, young := deployment("web"), deployment("api")
	for _, d := range []pipeline.Deployment{old, young} {
		enqueue(t, s, d, &Delivery{Sender: "github", App: d.App, ID: "1", Received: time.Now()})
		if err := s.Record(t.Context(), d.ID, pipeline.Entry{Step: "fetch", Phase: pipeline.Started}); err != nil {
			t.Fatal(err)
		}
	}
	old.State = pipeline.Failed
	if err := s.Finish(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]int{old.ID: 0, young.ID: 1} {
		if e, err := s.Entries(t.Context(), id); err != nil || len(e) != want {
			t.Errorf("journal after Forget: %v, %v, want %d", e, err, want)
		}
	}
	if got, err := s.Known(t.Context(), Delivery{Sender: "github", App: "web", ID: "1"}); err != nil || got.Repeated {
		t.Errorf("delivery after Forget: %+v, %v", got, err)
	}
	state(t, s, old.ID)
}

func TestSchedules(t *testing.T) {
	s := openNew(t)
	if at, err := s.LastScheduled(t.Context(), "web", "x"); !at.IsZero() || err != nil {
		t.Errorf("first: %v, %v", at, err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	if err := s.SetScheduled(t.Context(), "web", "x", now); err != nil {
		t.Fatal(err)
	}
	if at, err := s.LastScheduled(t.Context(), "web", "x"); !at.Equal(now) || err != nil {
		t.Errorf("stored: %v, %v", at, err)
	}
}
