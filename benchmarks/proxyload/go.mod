module timedblock.invalid/proxyload

go 1.17
