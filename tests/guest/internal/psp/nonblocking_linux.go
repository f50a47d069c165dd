package psp

import "syscall"

const nonBlocking = syscall.O_NONBLOCK
