package main

import (
	"fmt"
	"os"
	"text/tabwriter"
)

// budget is a promise of the project, with what this run measured. It is no test: a
// machine that others use meanwhile breaks it as well as a slow program.
type budget struct {
	what, want, got string
	met, missing    bool
}

// budgets are the promises that a run had something to say about.
type budgets []budget

func (b *budgets) add(what, want, got string, met bool) {
	*b = append(*b, budget{what: what, want: want, got: got, met: met})
}

// missing notes a promise that this machine cannot measure.
func (b *budgets) missing(what, want string, why error) {
	*b = append(*b, budget{what: what, want: want, got: "not measured: " + why.Error(), missing: true})
}

// faster compares the medians of a peer and of ours.
func (b *budgets) faster(what string, factor float64, ours, peer *series, missing error) {
	want := fmt.Sprintf("≥ %.0f× faster", factor)
	if missing != nil {
		b.missing(what, want, missing)
		return
	}
	o, p := ours.at(0.5), peer.at(0.5)
	ratio := float64(p) / float64(o)
	b.add(what, want, fmt.Sprintf("%.1f× (%s, %s)", ratio, round(o), round(p)), ratio >= factor)
}

func (b budgets) print() {
	if len(b) == 0 {
		return
	}
	fmt.Println("\nbudgets")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	for _, x := range b {
		met := map[bool]string{true: "met", false: "missed"}[x.met]
		if x.missing {
			met = "-"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", x.what, x.want, x.got, met)
	}
	_ = w.Flush() // to standard output: who does not see it sees nothing of this
}
