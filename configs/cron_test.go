package configs

import "testing"

func TestCron(t *testing.T) {
	for _, spec := range []string{
		"* * * * *", "0 4 * * *", "*/15 0-6,22-23 1,15 jan-MAR mon-fri", "30 2 29 2 *", "0 0 13 * 5", "0 0 31 2 1", "0 0 ? * 0",
		"5/10 * * * *", " 0  4 * * * ", "@daily", "@hourly", "@every 1m", "@every 1h30m", "0 0 31 1,2 *", "0 0 31 2 */2", "10-20/5 * * * *",
	} {
		if err := checkCron(spec); err != nil {
			t.Errorf("%q: %v", spec, err)
		}
	}
	for spec, want := range map[string]string{
		"":                         "has no value",
		"TZ=UTC":                   "must not name a time zone: it is the key tz",
		"CRON_TZ=UTC 0 4 * * *":    "must not name a time zone: it is the key tz",
		"@every -1h":               "@every must be at least 1m",
		"@every 59s":               "@every must be at least 1m",
		"@every day":               `"day" is not a duration such as 6h or 30m`,
		"@reboot":                  `"@reboot" is unknown; allowed: @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly and @every with a duration`,
		"0 0 31 2 *":               "never comes: none of the months has such a day",
		"0 0 31 4,6,9,11 *":        "never comes: none of the months has such a day",
		"0 0 30-31 feb ?":          "never comes: none of the months has such a day",
		"*/90 * * * *":             `minute: step "90" must be between 1 and 59`,
		"*/0 * * * *":              `minute: step "0" must be between 1 and 59`,
		"60 * * * *":               `minute: "60" must be between 0 and 59`,
		"0 0 0 * *":                `day of the month: "0" must be between 1 and 31`,
		"0 0 * * 7":                `weekday: "7" must be between 0 and 6; Sunday is 0`,
		"0 0 * * sunday":           `weekday: "sunday" must be between 0 and 6`,
		"0 0 * * unm":              `weekday: "unm" must be between 0 and 6`,
		"20-10 * * * *":            `minute: range "20-10" goes backwards`,
		"1- * * * *":               `minute: "" must be between 0 and 59`,
		"+1 * * * *":               `minute: "+1" must be between 0 and 59`,
		", * * * *":                `minute: "" must be between 0 and 59`,
		"* * * *":                  "must have 5 fields (minute, hour, day, month, weekday), not 4",
		"0 * * * * *":              "must have 5 fields (minute, hour, day, month, weekday), not 6",
		"0 0 L * *":                `day of the month: "L" must be between 1 and 31`,
		"99999999999999999999 0 0": "must have 5 fields (minute, hour, day, month, weekday), not 3",
	} {
		if err := checkCron(spec); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", spec, err, want)
		}
	}
}

func FuzzCron(f *testing.F) {
	f.Add("*/5 1-2 3,4 jan mon-fri/2")
	f.Add("@every 5m")
	f.Fuzz(func(t *testing.T, spec string) { _ = checkCron(spec) })
}
