package registry

import "fmt"

// maxCompared bounds the names that a misspelt one is compared with.
const maxCompared = 10_000

// nearest is the end of a sentence that names the nearest existing name, or nothing.
func nearest[V any](have string, names map[string]V) string {
	if len(names) > maxCompared || have == "" {
		return ""
	}
	best, dist := "", 1<<30
	for n := range names {
		if d := distance(have, n); d < dist || d == dist && n < best {
			best, dist = n, d
		}
	}
	if dist > max(2, len(have)/4) {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance is the Levenshtein distance, in octets, of strings cut to a sane length.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}
