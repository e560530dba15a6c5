package chipproto

import (
	"fmt"
	"io/fs"
	"syscall"
)

// FileMark names one state of a file without looking into it: device, inode, size and times. The
// chip process says with it which PIN file was refused, the client sees with it whether the
// file has changed since; neither needs to compare PINs.
func FileMark(fi fs.FileInfo) string {
	mark := fmt.Sprintf("file:%d:%d", fi.Size(), fi.ModTime().UnixNano())
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		mark += fmt.Sprintf(":%d:%d:%d.%d", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
	}
	return mark
}
