package main

import (
	"fmt"
	"slices"
	"time"
)

// phases are the steps of starts and how long each took, since the one before it.
type phases struct {
	on    bool
	last  time.Time
	order []string
	times map[string][]time.Duration
}

func (p *phases) begin() { p.on, p.last = true, time.Now() }
func (p *phases) end()   { p.on = false }

// step is called by the engine.
func (p *phases) step(name string) {
	if !p.on {
		return
	}
	now := time.Now()
	if p.times == nil {
		p.times = map[string][]time.Duration{}
	}
	if p.times[name] == nil {
		p.order = append(p.order, name)
	}
	p.times[name] = append(p.times[name], now.Sub(p.last))
	p.last = now
}

func (p *phases) print() {
	fmt.Println("where the time of a start goes (naru, no network)")
	for _, name := range p.order {
		t := slices.Sorted(slices.Values(p.times[name]))
		fmt.Printf("  %-12s median %9s   min %9s\n", name, round(t[len(t)/2]), round(t[0]))
	}
}
