package build

// nearest is the option that was probably meant by a word that is none of
// them: at most two typing errors away, and fewer than half of its letters.
// The first of those that are equally near wins; "" is none.
func nearest(word string, options []string) string {
	best, match := min(3, (len(word)+2)/2), ""
	for _, o := range options {
		if diff := len(o) - len(word); diff >= best || -diff >= best {
			continue
		}
		if d := typos(word, o); d > 0 && d < best {
			best, match = d, o
		}
	}
	return match
}

// typos counts what turns a into b: letters that are added, missing, wrong, or
// swapped with their neighbour (optimal string alignment).
func typos(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			wrong := 1
			if a[i-1] == b[j-1] {
				wrong = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+wrong)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
