package configs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// cronField is one of the five fields. The words stand for the numbers from min.
type cronField struct {
	name     string
	min, max int
	words    string // three letters each
}

// cronMacros are the names that stand for five fields. @reboot is none: a
// restart of the agent must not deploy.
const cronMacros = "@yearly @annually @monthly @weekly @daily @midnight @hourly"

// minEvery is the shortest period of @every.
const minEvery = time.Minute

// checkCron says what is wrong with a schedule. What passes is understood by
// github.com/robfig/cron/v3 as it is written; more is refused than that library
// refuses, since it panics on "TZ=UTC", turns short and negative @every periods
// into one run a second, rounds steps that are too large, and accepts
// days that never come.
func checkCron(spec string) error {
	spec = strings.TrimSpace(spec)
	switch {
	case spec == "":
		return errors.New("has no value")
	case strings.Contains(spec, "TZ="):
		return errors.New("must not name a time zone: it is the key tz")
	case strings.HasPrefix(spec, "@every "):
		return checkEvery(strings.TrimPrefix(spec, "@every "))
	case strings.HasPrefix(spec, "@"):
		for macro := range strings.FieldsSeq(cronMacros) {
			if spec == macro {
				return nil
			}
		}
		return fmt.Errorf("%.40q is unknown; allowed: %s and @every with a duration", spec, strings.ReplaceAll(cronMacros, " ", ", "))
	}
	parts := strings.Fields(spec)
	fields := []cronField{
		{"minute", 0, 59, ""}, {"hour", 0, 23, ""}, {"day of the month", 1, 31, ""},
		{"month", 1, 12, "janfebmaraprmayjunjulaugsepoctnovdec"}, {"weekday", 0, 6, "sunmontuewedthufrisat"},
	}
	if len(parts) != len(fields) {
		return fmt.Errorf("must have 5 fields (minute, hour, day, month, weekday), not %d", len(parts))
	}
	var bits [5]uint64
	for i, f := range fields {
		var err error
		if bits[i], err = f.parse(parts[i]); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if never(bits[2], bits[3], bits[4]) {
		return errors.New("never comes: none of the months has such a day")
	}
	return nil
}

func checkEvery(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%.40q is not a duration such as 6h or 30m", text)
	}
	if d < minEvery {
		return errors.New("@every must be at least 1m")
	}
	return nil
}

// anyBit marks a field written with a star: days then count only by the other field.
const anyBit = 1 << 63

// parse returns the set of values of a field, such as "*/15", "mon-fri" or "1,15-20/2".
func (f cronField) parse(text string) (uint64, error) {
	var bits uint64
	for part := range strings.SplitSeq(text, ",") {
		b, err := f.parseRange(part)
		if err != nil {
			return 0, err
		}
		bits |= b
	}
	return bits, nil
}

func (f cronField) parseRange(text string) (uint64, error) {
	span, stepText, stepped := strings.Cut(text, "/")
	step := 1
	if stepped {
		var err error
		if step, err = number10(stepText); err != nil || step < 1 || step > f.max-f.min {
			return 0, fmt.Errorf("step %.40q must be between 1 and %d", stepText, f.max-f.min)
		}
	}
	low, high, flag := f.min, f.max, uint64(0)
	if span == "*" || span == "?" {
		if step == 1 {
			flag = anyBit
		}
	} else {
		first, last, ranged := strings.Cut(span, "-")
		var err error
		if low, err = f.value(first); err != nil {
			return 0, err
		}
		if ranged {
			if high, err = f.value(last); err != nil {
				return 0, err
			}
		} else if !stepped {
			high = low
		}
	}
	if low > high {
		return 0, fmt.Errorf("range %.40q goes backwards", span)
	}
	bits := flag
	for v := low; v <= high; v += step {
		bits |= 1 << v
	}
	return bits, nil
}

func (f cronField) value(text string) (int, error) {
	if i := strings.Index(f.words, strings.ToLower(text)); len(text) == 3 && i >= 0 && i%3 == 0 {
		return f.min + i/3, nil
	}
	n, err := number10(text)
	if err != nil || n < f.min || n > f.max {
		hint := ""
		if f.max == 6 && n == 7 {
			hint = "; Sunday is 0"
		}
		return 0, fmt.Errorf("%.40q must be between %d and %d%s", text, f.min, f.max, hint)
	}
	return n, nil
}

// number10 reads digits only: strconv also takes signs.
func number10(text string) (int, error) {
	if strings.Trim(text, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.Atoi(text)
}

// never reports that no day matches. When both the day and the weekday are
// restricted either is enough (crontab(5)), and every weekday comes.
func never(days, months, weekdays uint64) bool {
	if weekdays&anyBit == 0 {
		if days&anyBit == 0 {
			return false
		}
		return weekdays == 0
	}
	longest := [...]int{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
	for month := 1; month <= 12; month++ {
		if months&(1<<month) != 0 && days&(1<<(longest[month-1]+1)-2) != 0 {
			return false
		}
	}
	return true
}
