module gosandbox.example/binds

go 1.19
