package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"naru/pipeline"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("NARU_TEST_WRITER"); path != "" {
		writeUntilKilled(path)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return s
}

func openNew(t *testing.T) *Store { return open(t, filepath.Join(t.TempDir(), "naru.db")) }

func deployment(app string) pipeline.Deployment {
	return pipeline.Deployment{
		ID: uuid.Must(uuid.NewV7()).String(), App: app, State: pipeline.Queued,
		Trigger: pipeline.Trigger{Kind: pipeline.Manual, By: "test"}, Created: time.Now().UTC().Truncate(time.Microsecond),
	}
}

func enqueue(t *testing.T, s *Store, d pipeline.Deployment, from *Delivery) Accepted {
	t.Helper()
	got, err := s.Enqueue(t.Context(), d, from)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func state(t *testing.T, s *Store, id string) pipeline.Deployment {
	t.Helper()
	d, err := s.Deployment(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// writeUntilKilled acknowledges each stored delivery and each journal entry on
// its output.
func writeUntilKilled(path string) {
	s, err := Open(path)
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for {
				d := deployment(fmt.Sprintf("app%d", w))
				if _, err := s.Enqueue(context.Background(), d, &Delivery{Sender: "github", App: d.App, ID: d.ID}); err != nil {
					panic(err)
				}
				fmt.Println("deployment", d.ID)
				if err := s.Record(context.Background(), d.ID, pipeline.Entry{Step: "fetch", Phase: pipeline.Started, At: time.Now()}); err != nil {
					panic(err)
				}
				fmt.Println("entry", d.ID)
			}
		})
	}
	wg.Wait()
}

func TestWhatWasAcknowledgedSurvivesSIGKILL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "naru.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "NARU_TEST_WRITER="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acknowledged []string
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			acknowledged = append(acknowledged, lines.Text())
			if len(acknowledged) == 200+37*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || len(acknowledged) < 200 {
			t.Fatalf("the writer ended by itself: %v, %d lines", err, len(acknowledged))
		}
		s := open(t, path)
		for _, line := range acknowledged {
			what, id, _ := strings.Cut(line, " ")
			d := state(t, s, id)
			if what != "entry" {
				continue
			}
			entries, err := s.Entries(t.Context(), id)
			if err != nil || len(entries) != 1 || d.Step != "fetch" {
				t.Fatalf("journal of %s: %v, %v, step %q", id, entries, err, d.Step)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneDeliveryIsOneDeployment(t *testing.T) {
	s := openNew(t)
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			got, err := s.Enqueue(t.Context(), deployment("web"), &Delivery{Sender: "github", App: "web", ID: "one", Hash: fmt.Sprint(i)})
			if err != nil {
				t.Error(err)
			}
			ids[i] = got.Deployment.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("two deployments of one delivery: %v", ids)
			break
		}
	}
	all, err := s.Deployments(t.Context(), "web", "", 100)
	if err != nil || len(all) != 1 {
		t.Errorf("stored deployments: %v, %v", all, err)
	}
	// The sender's id means nothing to another app or sender.
	for _, from := range []Delivery{{Sender: "gitea", App: "web", ID: "one"}, {Sender: "github", App: "api", ID: "one"}} {
		if got := enqueue(t, s, deployment(from.App), &from); got.Repeated {
			t.Errorf("%+v is taken for a repetition", from)
		}
	}
}

func TestIgnoredDeliveryIsJudgedAgain(t *testing.T) {
	s := openNew(t)
	from := Delivery{Sender: "github", App: "web", ID: "one", Ignored: "not the branch"}
	for range 2 {
		if got, err := s.Ignore(t.Context(), from); err != nil || got.Repeated {
			t.Fatalf("ignore: %+v, %v", got, err)
		}
	}
	from.Ignored = ""
	first := enqueue(t, s, deployment("web"), &from)
	if first.Repeated {
		t.Fatal("an ignored delivery never ran, so it is no repetition")
	}
	got, err := s.Ignore(t.Context(), from)
	if err != nil || !got.Repeated || got.Deployment.ID != first.Deployment.ID {
		t.Errorf("a delivery that ran: %+v, %v", got, err)
	}
}

func TestNewestSupersedesWhatWaits(t *testing.T) {
	s := openNew(t)
	running, old, newest, other := deployment("web"), deployment("web"), deployment("web"), deployment("api")
	enqueue(t, s, running, nil)
	if d, ok, err := s.Begin(t.Context(), "web"); !ok || err != nil || d.ID != running.ID || d.State != pipeline.Running {
		t.Fatalf("begin: %+v, %t, %v", d, ok, err)
	}
	for _, d := range []pipeline.Deployment{old, other, newest} {
		enqueue(t, s, d, nil)
	}
	for id, want := range map[string]pipeline.State{
		running.ID: pipeline.Running, old.ID: pipeline.Superseded, newest.ID: pipeline.Queued, other.ID: pipeline.Queued,
	} {
		if d := state(t, s, id); d.State != want {
			t.Errorf("state %s, want %s", d.State, want)
		}
	}
	unfinished, err := s.Unfinished(t.Context())
	if err != nil || len(unfinished) != 3 || unfinished[0].ID != running.ID {
		t.Errorf("unfinished: %v, %v", unfinished, err)
	}
	if did, err := s.CancelWaiting(t.Context(), newest.ID, "by test"); !did || err != nil {
		t.Errorf("cancel: %t, %v", did, err)
	}
	if did, err := s.CancelWaiting(t.Context(), running.ID, "by test"); did || err != nil {
		t.Errorf("cancel of a running one: %t, %v", did, err)
	}
	if _, ok, err := s.Begin(t.Context(), "web"); ok || err != nil {
		t.Errorf("begin of nothing: %t, %v", ok, err)
	}
}

func TestFinalStateStays(t *testing.T) {
	s := openNew(t)
	d := deployment("web")
	enqueue(t, s, d, nil)
	if _, _, err := s.Begin(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	d.State, d.Commit, d.Release, d.Serves, d.Error = pipeline.RolledBack, "c1", 3, 2, "sick"
	for range 2 {
		if err := s.Finish(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		d.State = pipeline.Live
	}
	got := state(t, s, d.ID)
	if got.State != pipeline.RolledBack || got.Commit != "c1" || got.Release != 3 || got.Serves != 2 || got.Error != "sick" || got.Finished.IsZero() {
		t.Errorf("stored: %+v", got)
	}
	d.State = pipeline.Running
	if err := s.Finish(t.Context(), d); err == nil {
		t.Error("running was taken for a final state")
	}
}

func TestJournalAndEvents(t *testing.T) {
	s := openNew(t)
	d := deployment("web")
	enqueue(t, s, d, nil)
	at := time.Now().UTC().Truncate(time.Microsecond)
	app := pipeline.App{Name: "web", Env: map[string]string{"A": "1"}}
	entries := []pipeline.Entry{
		{Step: "begin", Phase: pipeline.Done, Facts: pipeline.Facts{App: app}, At: at},
		{Step: "fetch", Phase: pipeline.Started, Facts: pipeline.Facts{App: app}, At: at},
		{Step: "fetch", Phase: pipeline.Done, Facts: pipeline.Facts{App: app, Commit: pipeline.Commit{Hash: "c1"}}, At: at},
		{Step: "build", Phase: pipeline.Started, Facts: pipeline.Facts{App: app, Commit: pipeline.Commit{Hash: "c1"}}, At: at},
		{Step: "build", Phase: pipeline.Failing, Error: "no Dockerfile", End: pipeline.Failed, Facts: pipeline.Facts{App: app}, At: at},
	}
	for i, e := range entries {
		if err := s.Log(t.Context(), d.ID, fmt.Sprint("before entry ", i)); err != nil {
			t.Fatal(err)
		}
		if err := s.Record(t.Context(), d.ID, e); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Entries(t.Context(), d.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(entries, got); diff != "" {
		t.Error("journal (-want +got):\n", diff)
	}
	if now := state(t, s, d.ID); now.Step != "build" || now.Commit != "c1" {
		t.Errorf("deployment: %+v", now)
	}
	steps, err := s.Steps(t.Context(), d.ID)
	want := []Step{
		{Name: "fetch", Phase: pipeline.Done, Started: at, Ended: at},
		{Name: "build", Phase: pipeline.Failing, Error: "no Dockerfile", Started: at, Ended: at},
	}
	if diff := cmp.Diff(want, steps); err != nil || diff != "" {
		t.Error("steps (-want +got):", err, diff)
	}
	d.State, d.Error = pipeline.Failed, "no Dockerfile"
	if err := s.Log(t.Context(), d.ID, "last words"); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	checkEvents(t, s, d.ID)
	if after, err := s.Entries(t.Context(), d.ID); err != nil || len(after) != len(entries) || after[2].Facts.App.Name != "" {
		t.Errorf("facts of a finished deployment are kept: %v", err)
	}
}

func checkEvents(t *testing.T, s *Store, id string) {
	t.Helper()
	events, err := s.Events(t.Context(), EventQuery{Deployment: id, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, e := range events {
		if e.N != int64(i)+1 {
			t.Errorf("event %d has number %d", i+1, e.N)
		}
		got = append(got, e.Kind+" "+e.Text)
	}
	want := []string{
		`state {"state":"queued"}`,
		"log before entry 0",
		"log before entry 1", `step {"step":"fetch","phase":"started"}`,
		"log before entry 2", `step {"step":"fetch","phase":"done"}`,
		"log before entry 3", `step {"step":"build","phase":"started"}`,
		"log before entry 4", `step {"step":"build","phase":"failed","error":"no Dockerfile"}`,
		"log last words", `state {"state":"failed","error":"no Dockerfile"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("events (-want +got):\n", diff)
	}
	rest, err := s.Events(t.Context(), EventQuery{Deployment: id, After: 8, Kind: KindLog, Limit: 100})
	if err != nil || len(rest) != 2 || rest[0].N != 9 {
		t.Errorf("replay: %v, %v", rest, err)
	}
}

// TestLogIsSeen waits for lines without any journal entry behind them.
func TestLogIsSeen(t *testing.T) {
	s := openNew(t)
	d := deployment("web")
	enqueue(t, s, d, nil)
	news, stop := s.Watch(d.ID)
	defer stop()
	if err := s.Log(t.Context(), d.ID, "hello\x00 \xff\n"); err != nil {
		t.Fatal(err)
	}
	limit := time.After(10 * time.Second)
	for {
		got, err := s.Events(t.Context(), EventQuery{Deployment: d.ID, Kind: KindLog, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 1 && got[0].Text == "hello \uFFFD" {
			return
		}
		select {
		case <-news:
		case <-limit:
			t.Fatalf("after 10 s: %+v", got)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	s := openNew(t)
	d := deployment("web")
	enqueue(t, s, d, nil)
	line := strings.Repeat("é", maxLine)
	for range maxLog/maxLine + 50 {
		if err := s.Log(t.Context(), d.ID, line); err != nil {
			t.Fatal(err)
		}
	}
	d.State = pipeline.Failed
	if err := s.Finish(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	got, err := s.Events(t.Context(), EventQuery{Deployment: d.ID, Kind: KindLog, Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, e := range got {
		size += len(e.Text)
	}
	if size > maxLog+maxLine || got[len(got)-1].Text != endMark || !strings.HasSuffix(got[0].Text, "é"+cutMark) {
		t.Errorf("%d lines with %d bytes, the last is %.80q", len(got), size, got[len(got)-1].Text)
	}
}

func TestTokens(t *testing.T) {
	s := openNew(t)
	plain, made, err := s.CreateToken(t.Context(), "ci")
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.CheckToken(t.Context(), plain)
	if err != nil || got.ID != made.ID || got.Name != "ci" {
		t.Fatalf("check: %+v, %v", got, err)
	}
	for _, wrong := range []string{"", "naru", "naru__", "naru_" + made.ID + "_", plain + "x", plain[:len(plain)-1], strings.ToUpper(plain), "naru_0_" + strings.Repeat("x", 1000)} {
		if _, err := s.CheckToken(t.Context(), wrong); !errors.Is(err, ErrToken) {
			t.Errorf("token %.60q: %v", wrong, err)
		}
	}
	data, err := os.ReadFile(databasePath(t, s))
	if err != nil || strings.Contains(string(data), plain[len(plain)-20:]) {
		t.Errorf("the token is in the file: %v", err)
	}
	if err := s.RevokeToken(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CheckToken(t.Context(), plain); !errors.Is(err, ErrToken) {
		t.Errorf("revoked token: %v", err)
	}
	if err := s.RevokeToken(t.Context(), made.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("second revocation: %v", err)
	}
}

func databasePath(t *testing.T, s *Store) (path string) {
	t.Helper()
	var n, name string
	if err := s.read.QueryRow("PRAGMA database_list").Scan(&n, &name, &path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFailingJobIsUndoneAlone(t *testing.T) {
	s := openNew(t)
	good := func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO schedule_runs VALUES ('a', ?, 1)", uuid.NewString())
		return err
	}
	bad := func(tx *sql.Tx) error { return errors.Join(good(tx), errors.New("bad")) }
	batch := []*job{{do: good}, {do: bad}, {do: good}}
	for _, j := range batch {
		j.done = make(chan struct{})
	}
	s.commit(batch)
	var n int
	if err := s.read.QueryRow("SELECT count(*) FROM schedule_runs").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows, %v", n, err)
	}
	if batch[0].err != nil || batch[1].err == nil || batch[2].err != nil {
		t.Errorf("errors %v, %v, %v", batch[0].err, batch[1].err, batch[2].err)
	}
}

// BenchmarkEnqueue is a burst of 200 apps at once.
func BenchmarkEnqueue(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "naru.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetParallelism(100)
	b.RunParallel(func(pb *testing.PB) {
		app := uuid.NewString()
		for pb.Next() {
			if _, err := s.Enqueue(context.Background(), deployment(app), &Delivery{Sender: "github", App: app, ID: uuid.NewString()}); err != nil {
				b.Error(err)
			}
		}
	})
}
