// Command verity-root maps the root disk behind its dm-verity tree as
// /dev/mapper/root. The initramfs runs it once, before the root file system is
// mounted; it is apart from the guest program because that lies on the disk
// that is verified here.
//
// Usage: verity-root <data partition> <hash partition> <root hash>
package main

import (
	"os"

	"refguest/internal/verity"
)

func main() {
	if len(os.Args) != 4 {
		fail("usage: verity-root <data partition> <hash partition> <root hash>")
	}
	node, err := verity.Open("root", os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fail(err.Error())
	}
	// The kernel compares nothing until the first read: one block is enough to
	// tell a wrong root hash from a disk that is damaged further in.
	dev, err := os.Open(node)
	if err != nil {
		fail(err.Error())
	}
	if _, err := dev.Read(make([]byte, 4096)); err != nil {
		fail("the root disk or its hash tree does not match roothash= (" + err.Error() + ")")
	}
	if err := os.Symlink(node, "/dev/mapper/root"); err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	os.Stderr.WriteString("verity-root: " + why + "\n")
	os.Exit(1)
}
