//go:build !wardgate_keylog

package router

import "wardgate/ike"

// keylogNote is empty: what is shipped writes no keys down.
const keylogNote = ""

func (*Router) logKeys(*childSA, *ike.ChildSA) {}
