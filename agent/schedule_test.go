package agent

import (
	"testing"
	"time"

	"naru/configs"
	"naru/pipeline"
)

func TestParseScheduleRefuses(t *testing.T) {
	for _, c := range []configs.Schedule{
		{Cron: "CRON_TZ=UTC", Zone: "UTC"}, {Cron: "TZ=", Zone: "UTC"}, {Cron: "@every 1s", Zone: "UTC"}, {Cron: "@every -1h", Zone: "UTC"},
		{Cron: "0 0 31 2 *", Zone: "UTC"}, {Cron: "", Zone: "UTC"}, {Cron: "@reboot", Zone: "UTC"}, {Cron: "0 4 * * *", Zone: "Mars/Base"},
	} {
		if _, err := parseSchedule(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// TestOneRunPerDay goes through three years of every zone's clock changes.
func TestOneRunPerDay(t *testing.T) {
	for _, zone := range []string{
		"UTC", "Asia/Seoul", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Tehran",
		"America/Santiago", "Pacific/Apia",
	} {
		for _, spec := range []string{"0 0 * * *", "30 1 * * *", "30 2 * * *", "0 3 * * *", "59 23 * * *"} {
			s, err := parseSchedule(configs.Schedule{Cron: spec, Zone: zone})
			if err != nil {
				t.Fatal(err)
			}
			at := time.Date(2024, 1, 1, 0, 0, 0, 0, s.zone).Add(-time.Second)
			end := time.Date(2027, 1, 1, 0, 0, 0, 0, s.zone)
			runs := 0
			for {
				next := s.Next(at)
				if !next.After(at) {
					t.Fatalf("%s %s: after %s comes %s", zone, spec, at, next)
				}
				if !next.Before(end) {
					break
				}
				at, runs = next, runs+1
			}
			if runs != 1096 { // 366 + 365 + 365 days
				t.Errorf("%s %s: %d runs in 1096 days", zone, spec, runs)
			}
		}
	}
}

func TestDue(t *testing.T) {
	s, err := parseSchedule(configs.Schedule{Cron: "*/10 * * * *", Zone: "UTC"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 5, 1, 12, 5, 0, 0, time.UTC)
	for _, c := range []struct {
		last time.Time
		want string
	}{
		{now.Add(-time.Minute), ""},
		{now.Add(-6 * time.Minute), "12:00"},
		{now.Add(-24 * time.Hour), "12:00"}, // many missed are one
		{now.Add(time.Hour), ""},            // the clock went back
	} {
		at, ok := s.due(c.last, now)
		if got := at.Format("15:04"); ok != (c.want != "") || ok && got != c.want {
			t.Errorf("last %s: due %s, %t, want %q", c.last, got, ok, c.want)
		}
	}
	daily, err := parseSchedule(configs.Schedule{Cron: "0 4 * * *", Zone: "UTC"})
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := daily.due(now.Add(-24*time.Hour), now); ok {
		t.Errorf("a run missed by 8 hours is due: %s", at)
	}
}

func TestScheduleRunsOnce(t *testing.T) {
	m := newMachine(t, "web")
	m.config.Apps[0].Triggers.Schedules = []configs.Schedule{{Cron: "@every 10m", Zone: "UTC"}}
	a, stop := m.agent(t)
	s := a.currentSchedules()[0]
	eventually(t, "the new schedule is noted", func() bool {
		last, err := m.store.LastScheduled(t.Context(), "web", s.text)
		return err == nil && !last.IsZero()
	})
	stop()
	if err := m.store.SetScheduled(t.Context(), "web", s.text, time.Now().Add(-15*time.Minute)); err != nil {
		t.Fatal(err)
	}
	// The agent starts after a run was missed, and looks often.
	a, _ = m.agent(t)
	for range 5 {
		if err := a.look(t.Context(), s, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	all, err := m.store.Deployments(t.Context(), "web", "", 10)
	if err != nil || len(all) != 1 || all[0].Trigger.Kind != pipeline.Schedule {
		t.Fatalf("deployments %+v, %v", all, err)
	}
	m.ends(t, all[0].ID, pipeline.Live)
	if next := a.NextRuns("web", time.Now()); len(next) != 1 || time.Until(next[0]) > 10*time.Minute {
		t.Errorf("next runs %v", next)
	}
}
