package cgroup

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (g *Group) ioStats(s *Stats) error {
	dir, v2, err := g.statsDir("blkio")
	if err != nil {
		return err
	}
	if v2 {
		b, err := readFile(filepath.Join(dir, "io.stat"))
		for line := range strings.Lines(string(b)) {
			s.IO.v2Line(strings.Fields(line))
		}
		return err
	}
	for _, file := range []string{"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"} {
		b, err := readFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			s.IO.v1Line(strings.Fields(line), strings.Contains(file, "bytes"))
		}
	}
	return nil
}

// v1Line takes "8:0 Read 1024".
func (io *IOStats) v1Line(f []string, isBytes bool) {
	if len(f) != 3 {
		return // "Total 0"
	}
	d, ok := io.device(f[0])
	n, err := strconv.ParseUint(f[2], 10, 64)
	if !ok || err != nil {
		return
	}
	switch f[1] {
	case "Read":
		if isBytes {
			d.ReadBytes = n
		} else {
			d.Reads = n
		}
	case "Write":
		if isBytes {
			d.WriteBytes = n
		} else {
			d.Writes = n
		}
	}
}

// v2Line takes "8:0 rbytes=1024 wbytes=0 rios=1 …".
func (io *IOStats) v2Line(f []string) {
	if len(f) < 2 {
		return
	}
	d, ok := io.device(f[0])
	if !ok {
		return
	}
	to := map[string]*uint64{"rbytes": &d.ReadBytes, "wbytes": &d.WriteBytes, "rios": &d.Reads, "wios": &d.Writes}
	for _, pair := range f[1:] {
		k, v, _ := strings.Cut(pair, "=")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil && to[k] != nil {
			*to[k] = n
		}
	}
}

// device finds or adds the entry of "8:0".
func (io *IOStats) device(name string) (*DeviceIO, bool) {
	var d DeviceIO
	if _, err := fmt.Sscanf(name, "%d:%d", &d.Major, &d.Minor); err != nil {
		return nil, false
	}
	i := slices.IndexFunc(io.Devices, func(o DeviceIO) bool { return o.Major == d.Major && o.Minor == d.Minor })
	if i < 0 {
		i = len(io.Devices)
		io.Devices = append(io.Devices, d)
	}
	return &io.Devices[i], true
}

func (g *Group) hugetlbStats(s *Stats) error {
	dir, v2, err := g.statsDir("hugetlb")
	if err != nil {
		return err
	}
	usage, limit := "usage_in_bytes", "limit_in_bytes"
	if v2 {
		usage, limit = "current", "max"
	}
	files, err := filepath.Glob(filepath.Join(dir, "hugetlb.*."+usage))
	for _, file := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "hugetlb."), "."+usage)
		if strings.Contains(size, ".") {
			continue // reservations
		}
		var h HugetlbStats
		if h.Usage, err = readNumber(dir, filepath.Base(file)); err != nil {
			return err
		}
		if h.Limit, err = readNumber(dir, "hugetlb."+size+"."+limit); err != nil {
			return err
		}
		if h.FailCount, err = readNumber(dir, "hugetlb."+size+".failcnt"); v2 {
			var events map[string]uint64
			events, err = keyed(dir, "hugetlb."+size+".events")
			h.FailCount = events["max"]
		}
		if err != nil {
			return err
		}
		if s.Hugetlb == nil {
			s.Hugetlb = map[string]HugetlbStats{}
		}
		s.Hugetlb[size] = h
	}
	return err
}

// Pressure is pressure stall information (Linux Documentation accounting/psi): how
// long some, or all, tasks of the group waited for the resource.
type Pressure struct {
	Some Stall `json:"some"`
	Full Stall `json:"full"`
}

// Stall is a share of the last 10, 60 and 300 seconds in percent, and all of the time.
type Stall struct {
	Avg10  float64       `json:"avg10"`
	Avg60  float64       `json:"avg60"`
	Avg300 float64       `json:"avg300"`
	Total  time.Duration `json:"total"`
}

// pressures are files of the unified hierarchy, which needs no controllers for them.
func (g *Group) pressures(s *Stats) error {
	dir := g.UnifiedDir()
	if dir == "" {
		return nil
	}
	for name, to := range map[string]**Pressure{"cpu": &s.CPU.Pressure, "memory": &s.Memory.Pressure, "io": &s.IO.Pressure} {
		b, err := readFile(filepath.Join(dir, name+".pressure"))
		if gone(err) {
			continue // a kernel without PSI, or with psi=0
		}
		if err != nil {
			return err
		}
		if *to, err = parsePressure(string(b)); err != nil {
			return fmt.Errorf("%s.pressure: %w", name, err)
		}
	}
	return nil
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same
// of "full", which cpu has since Linux 5.13.
func parsePressure(text string) (*Pressure, error) {
	p := &Pressure{}
	for line := range strings.Lines(text) {
		var kind string
		var s Stall
		var total uint64
		if _, err := fmt.Sscanf(line, "%s avg10=%f avg60=%f avg300=%f total=%d", &kind, &s.Avg10, &s.Avg60, &s.Avg300, &total); err != nil {
			return nil, err
		}
		s.Total = micro(total)
		switch kind {
		case "some":
			p.Some = s
		case "full":
			p.Full = s
		}
	}
	return p, nil
}
