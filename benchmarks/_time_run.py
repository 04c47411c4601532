import time,sys
from benchmarks.positional_label_claims import *
t=time.time(); print(supervised("positional_label/small_finetune",(*VIT,*RELATIVE,"schedule.epochs=5"),"/work/shared/data/images/cifar10",1000,0)); print("vit rel",time.time()-t)
t=time.time(); print(supervised("positional_label/small_finetune_swin",(*SWIN,*ABSOLUTE,"schedule.epochs=5"),"/work/shared/data/images/cifar10",1000,0)); print("swin abs",time.time()-t)
t=time.time(); print(pretrained((*ABSOLUTE,"schedule.epochs=3"),"/work/shared/data/images/cifar10",0)); print("mae",time.time()-t)
